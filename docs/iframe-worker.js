/* Where a page is opened from the disk, browsers start no workers: the search of the site runs in a hidden frame instead. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.documentElement.append(this.frame)
      const inside = this.frame.contentWindow
      inside.document.open()
      inside.document.write("<!doctype html><body></body>")
      inside.document.close()
      inside.importScripts = (...urls) => Promise.all(urls.map(one => this.load(one)))
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.ready = this.load(new URL(url, location.href).href)
    }
    load(url) {
      const script = this.frame.contentDocument.createElement("script")
      script.src = url
      return new Promise(resolve => {
        script.onload = resolve
        this.frame.contentDocument.body.append(script)
      })
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }
    dispatchEvent(event) {
      if (this["on" + event.type]) this["on" + event.type](event)
      return super.dispatchEvent(event)
    }
    terminate() {
      this.frame.remove()
    }
  }
}
