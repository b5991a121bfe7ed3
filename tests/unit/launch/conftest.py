"""Stands in for the package store of a Ray cluster."""

import pytest


class Packages:
    """Holds what is uploaded, and counts it."""

    def __init__(self):
        self.held, self.uploads = {}, 0

    def has_package(self, name):
        return name in self.held

    def upload_package(self, name, body):
        self.uploads += 1
        self.held[name] = body


@pytest.fixture
def packages() -> Packages:
    return Packages()
