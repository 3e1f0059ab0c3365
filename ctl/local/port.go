package local

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
)

// The ports that nodes are given begin here, above what Debian's packages listen on.
const firstPort = 20_000

// freeAddress finds a loopback port that is free now, no other node's, and not one that the kernel gives to outgoing connections: such a port may be
// taken while its node is down.
func freeAddress(nodes []nodeState) (string, error) {
	end := ephemeralPorts()
	if end <= firstPort {
		return listensAt("127.0.0.1:0")
	}
	var err error
	for range 100 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(firstPort+rand.IntN(end-firstPort)))
		if slices.Contains(nodes, nodeState{Address: addr}) {
			continue
		}
		if addr, err = listensAt(addr); err == nil {
			return addr, nil
		}
	}
	return "", fmt.Errorf("no free port between %d and %d: %w", firstPort, end, err)
}

// listensAt reports the address that a listener gets.
func listensAt(addr string) (string, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// ephemeralPorts is the first of the ports that the kernel gives to outgoing connections. Source: ip(7), ip_local_port_range.
func ephemeralPorts() int {
	first := 32_768
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		_, _ = fmt.Sscan(string(b), &first)
	}
	return first
}
