"""Every side effect on this machine: HAProxy's process and socket, files, folders, watches."""
