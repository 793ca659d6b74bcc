# Shell functions: drivers for the hardware that is there, and the network.  Read by start.

# Every device says what it is in its modalias; modules.alias says which driver claims that.
# The PCI functions come first, as the virtio devices appear only when virtio_pci is loaded.
load_drivers() {
    [ -d /lib/modules ] || return 0
    for bus in pci virtio; do
        aliases=
        for file in /sys/bus/$bus/devices/*/modalias; do
            [ -e "$file" ] && read -r alias < "$file" && aliases="$aliases $alias"
        done
        [ -z "$aliases" ] || modprobe -q -a $aliases
    done
}

# vmm.ip=ADDRESS/PREFIX[,GATEWAY] on the kernel command line, or DHCP without it.
network_up() {
    ip link set lo up
    [ -e /sys/class/net/eth0 ] || return 0
    static=
    read -r cmdline < /proc/cmdline
    for word in $cmdline; do
        case $word in vmm.ip=*) static=${word#vmm.ip=} ;; esac
    done
    ip link set eth0 up
    if [ -n "$static" ]; then
        ip addr add "${static%%,*}" brd + dev eth0
        case $static in *,*) ip route add default via "${static#*,}" ;; esac
    else
        udhcpc -q -f -n -t 5 -T 1 -i eth0 -s /etc/dhcp || echo "no DHCP server answered"
    fi
}

# Wait until something listens on a TCP port, without connecting to it.  In /proc/net/tcp the port
# is in hexadecimal and state 0A is LISTEN; a server for both versions of IP is in tcp6 only.
wait_for_port() {
    port=$(printf '%04X' "$1")
    tries=0
    while [ $tries -lt 600 ]; do
        for table in /proc/net/tcp /proc/net/tcp6; do
            while read -r _ local _ state _; do
                [ "$state" = 0A ] && [ "${local#*:}" = "$port" ] && return 0
            done < $table
        done
        sleep 0.05
        tries=$((tries + 1))
    done
    echo "GUEST-FAILED nothing listens on port $1"
    return 1
}
