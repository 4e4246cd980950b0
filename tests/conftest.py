"""How parallel processes share the tests (`--dist loadgroup`)."""

import pytest


@pytest.hookimpl(tryfirst=True)  # before the plugin looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests together, for its fixtures' sake, and all that need the one ComfyUI."""
    for item in items:
        file = f"{item.path.parent.name}/{item.path.stem}"
        group = "host" if item.get_closest_marker("host") else file
        item.add_marker(pytest.mark.xdist_group(group))
