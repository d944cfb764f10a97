"""The verbs: from a request to a run, and what can be done with a run afterwards."""
