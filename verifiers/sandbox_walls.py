"""Which walls stand: those that last for the zygote's life, and those that each child puts up for itself.

Standard library only: the zygote imports this file without the rest of the package.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from verifiers import sandbox_layers as layers
from verifiers import sandbox_seccomp as seccomp


class Walls:
    """Which layers stand, and how a child puts up its own."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.layers: set[str] = set(options["layers"])
        self.report: dict[str, str] = {}
        """Layer to "on", or the reason why it is not."""
        self.search_path = [path for path in dict.fromkeys(map(os.path.realpath, sys.path)) if os.path.isdir(path)]
        self.paths = [p for p in self.search_path if not any(p.startswith(q + "/") for q in self.search_path)]
        """Directories that programs may read."""
        self._filter: Any = None
        self._landlock_version = 0
        self.proc = -1

    def _attempt(self, layer: str, action: Any) -> bool:
        if layer not in self.layers:
            self.report[layer] = "switched off"
            return False
        try:
            action()
        except (OSError, NotImplementedError, KeyError) as error:
            self.report[layer] = str(error)
            return False
        self.report[layer] = "on"
        return True

    def on(self, layer: str) -> bool:
        return self.report.get(layer) == "on"

    def put_up(self) -> None:
        """Put up what lasts for the zygote's life."""
        proc = self.proc = os.open("/proc", os.O_PATH)  # the private tree has none
        root = os.geteuid() == 0
        tree_built = False
        if root:
            # root's files are readable for the tree only before root is given up
            try:
                layers.unshare(layers.NEW_MOUNT)
                tree_built = self._attempt("mount namespace", self._build_tree)
            except OSError:
                pass  # root without CAP_SYS_ADMIN: a user namespace may still work, below
            self._attempt("unprivileged user", layers.become_unprivileged)
        else:
            self.report["unprivileged user"] = "on"
        self._attempt("user namespace", lambda: layers.enter_user_namespace(proc))
        if self.on("user namespace") and not tree_built:

            def separate_tree() -> None:
                layers.unshare(layers.NEW_MOUNT)
                self._build_tree()

            self._attempt("mount namespace", separate_tree)
        self._attempt("network namespace", lambda: layers.unshare(layers.NEW_NET))
        self._attempt("ipc namespace", lambda: layers.unshare(layers.NEW_IPC))
        self._attempt("uts namespace", lambda: layers.unshare(layers.NEW_UTS))
        self.report.setdefault("mount namespace", "needs a user namespace")
        self._attempt("no new privileges", layers.forbid_new_privileges)
        if self.on("user namespace"):
            self._attempt("capabilities", layers.drop_bounding_set)
        else:
            self.report["capabilities"] = "on" if self.on("unprivileged user") else "root was not given up"
        self._attempt("landlock", self._find_landlock)
        self._attempt("pid namespace", self._try_pid_namespace)
        if not self.on("pid namespace"):
            layers.adopt_orphans()
        layers.set_limits(self.options["limits"])
        self.report["rlimits"] = "on"
        self._attempt("seccomp", self._install_filters)

    def _build_tree(self) -> None:
        hidden = [os.path.join(path, name) for path in self.paths for name in ("site-packages", "dist-packages")]
        layers.enter_private_tree(self.paths, [path for path in hidden if os.path.isdir(path)])

    def _find_landlock(self) -> None:
        self._landlock_version = layers.landlock_version()

    def _try_pid_namespace(self) -> None:
        pid = layers.fork(layers.NEW_PID)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    def _install_filters(self) -> None:
        # the long allow-list binds the zygote too and is inherited; a child adds the short list of what only a zygote
        # may do
        self._filter = seccomp.SeccompFilter(seccomp.child_filter(allow_kill=self.on("pid namespace")))
        seccomp.SeccompFilter(seccomp.zygote_filter()).install()

    def children(self) -> set[int]:
        descriptor = os.open(f"self/task/{os.getpid()}/children", os.O_RDONLY, dir_fd=self.proc)
        with open(descriptor) as file:
            return set(map(int, file.read().split()))

    def fork_flags(self) -> int:
        flags = layers.NEW_PID if self.on("pid namespace") else 0
        return flags | (layers.NEW_MOUNT if self.on("mount namespace") else 0)

    def close_in_child(self, scratch: str) -> None:
        """Put up the walls of one child. Raises OSError: then no program runs."""
        layers.die_with_parent()
        os.closerange(
            4, 1024
        )  # all but standard streams and control: this process's copies of the zygote's descriptors
        os.setsid()
        os.umask(0o077)
        if self.on("mount namespace"):
            layers.mount_scratch(self.options["scratch_mib"])
        else:
            os.environ.update(HOME=scratch, TMPDIR=scratch)
        os.chdir(scratch)
        layers.set_limits({"CPU": self.options["cpu_seconds"]})
        if self.on("user namespace"):
            layers.drop_capabilities()
        if self.on("landlock"):
            layers.restrict_files(self._landlock_version, self.paths, [scratch])
        if self.on("seccomp"):
            self._filter.install()
