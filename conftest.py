"""For all tests: compiled JAX functions are kept between tests and sessions, since compiling is most of their time."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(request):
    """The product's own persistent cache, for functions of any compile time; only where a test uses JAX anyway."""
    folders = {Path(item.fspath).parent.name for item in request.session.items}
    if folders & {"jax", "parity_tests"}:
        import jax

        from jaxgpt.runtime import start_jax

        start_jax()
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
