"""Web page to try a pruned model beside the unpruned one, by gradio (extra ``[app]``)."""
