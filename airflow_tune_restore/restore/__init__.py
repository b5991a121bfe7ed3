"""Restores of experiments, from plan to undo. Every `store` is rooted at an experiment directory."""
