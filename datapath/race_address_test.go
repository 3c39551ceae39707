package datapath

import (
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestLostAddressEndsAFlowOnce has two CPUs send a packet each of the same flow
// at once, after the host has lost the flow's address: the flow ends once, and
// is counted once.
func TestLostAddressEndsAFlowOnce(t *testing.T) {
	testutil.RequireRoot(t)
	const first, rounds = 2000, 4000
	w := newWorld(t, loadShares(16384, 8192))
	var rows [rounds]row
	for i := range rows {
		p := outgoing(alice, false, udp(uint16(first+i), 53))
		rows[i] = fromEndpoint("", alice, p.frame(t))
		w.send(t, rows[i])
	}
	moved(t, w)
	w.race(t, rounds, func(_, round int) error {
		r := rows[round]
		_, err := w.program(r.hook).Run(w.options(r.device, r.in, r.skb))
		return err
	})
	w.checkShares(t)
}
