"""What is asked of a run or of a configuration, by the names of the verbs."""
