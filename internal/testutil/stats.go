package testutil

import "testing"

// Traffic is counted from the container's point of view: it transmits what the
// host receives.
type Traffic struct {
	Name      string `json:"name"`
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
}

// Stats is what `ebpnet -o json stats` says.
type Stats struct {
	Drops []struct {
		Reason  string `json:"reason"`
		Packets uint64 `json:"packets"`
		Bytes   uint64 `json:"bytes"`
	} `json:"drops"`
	Endpoints []Traffic `json:"endpoints"`
	Networks  []Traffic `json:"networks"`
	Tunnels   []Traffic `json:"tunnels"`
}

// Stats asks the host for its counters.
func (h *Host) Stats(t testing.TB) Stats {
	t.Helper()
	var s Stats
	h.EbpnetJSON(t, &s, "stats")
	return s
}

// Drops gives how many packets the host has dropped for a reason.
func (h *Host) Drops(t testing.TB, reason string) uint64 {
	t.Helper()
	for _, d := range h.Stats(t).Drops {
		if d.Reason == reason {
			return d.Packets
		}
	}
	return 0
}

// ExpectDrops runs f and fails the test unless the host has dropped packets for
// the reason since.
func (h *Host) ExpectDrops(t testing.TB, reason string, f func()) {
	t.Helper()
	before := h.Drops(t, reason)
	f()
	Eventually(t, "a packet dropped as "+reason+" on "+h.Name, func() bool {
		return h.Drops(t, reason) > before
	})
}
