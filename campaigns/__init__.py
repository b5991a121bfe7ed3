"""Campaigns: many rounds of deliberate harm, with a seed. See docs/reliability.md."""
