"""Starts pip from its archive, or the compiler of bytecode, in a process that can start no other program.

Rules: a package comes from the index by its name, and as a wheel. Where a package's own words name an address, a file or a
repository, nothing is asked of it: the install ends. What can't be put around pip raises, and nothing is installed."""

import os
import sys

_PROGRAM_EVENTS = frozenset(("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"))


def start_nothing(program):
    """No git, no compiler, no build: by Python's own events, and by the kernel where it takes a filter."""

    def refuse(event, args):
        if event in _PROGRAM_EVENTS:
            raise PermissionError("installers start no programs")

    sys.addaudithook(refuse)
    try:
        import ctypes
    except ImportError:  # a CPython built without libffi
        return

    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]

    if program:
        set_seccomp, filter_mode = 22, 2
        # Refused inside a Lambda function.
        ctypes.CDLL(None).prctl(set_seccomp, ctypes.c_ulong(filter_mode), ctypes.byref(Filter(len(program) // 8, program)))


def take_the_index_only():
    """Every candidate that pip considers goes through these two, before anything is fetched for it."""
    from pip._internal.exceptions import InstallationError
    from pip._internal.resolution.resolvelib.factory import Factory

    make_requirements, make_candidate = Factory._make_requirements_from_install_req, Factory._make_base_candidate_from_link

    def requirements(self, ireq, requested_extras):
        if (ireq.link or ireq.editable) and ireq.match_markers(requested_extras):
            needing = getattr(ireq.comes_from, "name", None) or "a requirement"
            raise InstallationError(f"direct reference: {needing} needs {ireq.name} from an address")
        return make_requirements(self, ireq, requested_extras)

    def candidate(self, link, template, name, version):
        if template.editable or not link.is_wheel or link.scheme not in ("https", "http"):
            raise InstallationError(f"direct reference: {name} is no wheel on the index")
        return make_candidate(self, link, template, name, version)

    Factory._make_requirements_from_install_req, Factory._make_base_candidate_from_link = requirements, candidate


def main(program, archive, stack, *arguments):
    start_nothing(bytes.fromhex(program))
    if not archive:
        import compileall

        sys.argv[:] = ["compileall", *arguments]
        sys.exit(not compileall.main())
    # All it says is heard on one channel: its report is a file.
    os.dup2(2, 1)
    sys.path.insert(0, archive)
    if stack:
        sys.path.append(stack)
    take_the_index_only()
    import runpy

    sys.argv[:] = ["pip", *arguments]
    runpy.run_module("pip", run_name="__main__", alter_sys=True)


main(*sys.argv[1:])
