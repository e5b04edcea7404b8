"""Generators on the Hugging Face Hub."""
