"""Distillation: from real images through a method to a generator."""
