"""Objectives, batching and steps of scorer training."""
