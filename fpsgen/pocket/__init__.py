"""What knows the pocket model: its words, its prompts, its judge."""
