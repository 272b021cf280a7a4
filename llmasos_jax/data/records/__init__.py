"""Records of files (conversations, answers, preferences, labelled texts) as examples of a task."""
