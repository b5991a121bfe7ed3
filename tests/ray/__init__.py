"""Tests with a real Ray."""
