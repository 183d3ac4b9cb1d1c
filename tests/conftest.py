"""What every test stands on: eight CPU devices, one name for each module, and registries as the test found them."""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile

# All of this has to be said before JAX or TensorFlow is first imported; subprocesses inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # TensorFlow would otherwise take the memory of a GPU that it finds
# Optimising the machine code of tiny programs takes longer than running them plainly, and so do XLA's newer emitters: a
# training step compiles in 6 s instead of 10 without them.
_FLAGS = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Jobs compile the same programs again and again: each run of one has steps of its own to compile. For this run of
    # the tests alone, so that no program of other code is met.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache = tempfile.mkdtemp(prefix="t5x-lite-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ["T5X_LITE_COMPILATION_CACHE"] = "off"  # the user's own, which the command line would switch on
os.environ["NO_GCE_CHECK"] = "true"  # TensorFlow's file system would ask the network whether this is a cloud machine

ROOT = pathlib.Path(__file__).resolve().parent.parent
# `python -m pytest` puts the root on sys.path, where tasks/ could be imported as `tasks` and register everything twice.
sys.path[:] = [entry for entry in sys.path if pathlib.Path(entry or ".").resolve() != ROOT]

import pytest  # noqa: E402


def pytest_collection_modifyitems(items):
    """The longest file first, so that processes which share the files end at about the same time."""
    items.sort(key=lambda item: item.path.name != "test_trainer.py")


@pytest.fixture(autouse=True)
def one_name_for_each_module():
    """Fail the test that imports the checkout's folders under their bare names."""
    yield
    assert "tasks" not in sys.modules, "import t5x_lite.tasks: as `tasks` the same tasks are registered a second time"
    gin = sys.modules.get("gin")
    assert getattr(gin, "__file__", "gin-config") is not None, "`gin` is the checkout's folder, not the gin library"


@pytest.fixture(autouse=True)
def fresh_gin_configuration():
    """Take back the bindings and search paths that a test leaves in gin; its configurables and constants stay."""
    prefixes = list(sys.modules["gin"].config._LOCATION_PREFIXES) if "gin" in sys.modules else [""]
    yield
    if gin := sys.modules.get("gin"):
        gin.clear_config()
        gin.config._LOCATION_PREFIXES[:] = prefixes


@pytest.fixture(autouse=True)
def same_seqio_registries(request):
    """Remove the tasks and mixtures that a test registers, together with the modules in tmp_path that did.

    The shipped tasks stay: their modules are imported once in a process and could not register them again. So they are
    imported before the registries are noted, and only where seqio (15 s) is loaded already. The first test that loads
    it keeps what it registers; a test file that imports seqio at its top has no such exception.
    """
    if "seqio" not in sys.modules:
        yield
        return
    import seqio

    import t5x_lite.tasks  # noqa: F401

    # Asked for here, because a teardown is too late to ask; only where the test has such a folder.
    folder = str(request.getfixturevalue("tmp_path")) if "tmp_path" in request.fixturenames else None
    modules = set(sys.modules)
    registries = [(r, dict(r._REGISTRY)) for r in (seqio.TaskRegistry, seqio.MixtureRegistry)]
    yield
    for registry, noted in registries:
        registry._REGISTRY = noted
    if folder is not None:
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", None)).startswith(folder):
                del sys.modules[name]
