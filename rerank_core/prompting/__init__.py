"""Prompts are data: templates as text files, untrusted text filled in, a model's answer read back."""
