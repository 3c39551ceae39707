package datapath

import (
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestLostAddressEndsAFlowOnce has two CPUs send a packet of the same flow at
// the same time, after the host lost the flow's address. The flow ends once and
// counts once.
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
