#!/bin/sh
# What the DaemonSet does on each node: carry the bundle over, and let the node's own root run `nacre install`
# there. In the container: the node's /opt at /host/opt, and the node's process ids.
set -eu

stage=opt/nacre/.parcel
on_node() {
    nsenter --target 1 --mount --uts --ipc --net --pid -- "$@"
}

case "${1:-install}" in
install)
    shift "$(($# > 0))"
    rm -rf "/host/$stage"
    mkdir -p "/host/$stage"
    cp -a /nacre/. "/host/$stage/"
    on_node "/$stage/bin/nacre" install "$@"
    rm -rf "/host/$stage"
    touch /tmp/installed
    # The pod stays, so that its cluster sees which nodes are done.
    trap 'exit 0' TERM INT
    while :; do
        sleep 3600 &
        wait $!
    done
    ;;
uninstall)
    shift
    on_node /opt/nacre/bin/nacre uninstall "$@"
    ;;
*)
    echo "install-node: $1: neither install nor uninstall" >&2
    exit 2
    ;;
esac
