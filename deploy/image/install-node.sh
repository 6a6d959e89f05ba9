#!/bin/sh
# What the DaemonSet does on each node: carry the bundle over, and let the node's own root run `nacre install`
# there. In the container: the node's /opt at /host/opt, and the node's process ids.
set -eu

stage=opt/nacre/.parcel
on_node() {
    nsenter --target 1 --mount --uts --ipc --net --pid -- "$@"
}
# The pod stays, so that its cluster sees which nodes are done.
stay() {
    touch /tmp/done
    trap 'exit 0' TERM INT
    while :; do
        sleep 3600 &
        wait $!
    done
}

case "${1:-install}" in
install)
    shift "$(($# > 0))"
    # Some hundred megabytes: they go whatever becomes of it.
    trap 'rm -rf "/host/$stage"' EXIT
    trap 'exit 1' TERM INT
    rm -rf "/host/$stage"
    mkdir -p "/host/$stage"
    cp -a /nacre/. "/host/$stage/"
    on_node "/$stage/bin/nacre" install "$@"
    rm -rf "/host/$stage"
    stay
    ;;
uninstall)
    shift
    # Where it is gone already (the container was started anew) nothing is to be done.
    if [ -e /host/opt/nacre/current/bin/nacre ]; then
        on_node /opt/nacre/current/bin/nacre uninstall "$@"
    fi
    stay
    ;;
*)
    echo "install-node: $1: neither install nor uninstall" >&2
    exit 2
    ;;
esac
