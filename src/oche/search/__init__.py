"""The search: one loop, the parts that a method is made of, the state that changes."""
