import pytest


@pytest.fixture(scope="session")
def built(built_world):
    """The world: captioners need no Ray."""
    return built_world
