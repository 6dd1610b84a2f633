"""Planning, how much goes and what is protected: amounts, the problem that a selection solves, and the plan."""
