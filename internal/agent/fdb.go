package agent

import (
	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/store"
)

// LearnedFilter says by names which learned stations are meant: those on the
// network, behind the tunnel and behind the endpoint, as far as given.
type LearnedFilter struct {
	Network, Tunnel, Endpoint string
}

// FlushLearned forgets the learned stations that f means.
func (a *Agent) FlushLearned(f LearnedFilter) error {
	var filter datapath.LearnedFilter
	err := a.store.View(func(tx *store.Tx) error {
		if f.Network != "" {
			n, err := tx.Network(f.Network)
			if err != nil {
				return err
			}
			filter.Network = n.ID
		}
		if f.Tunnel != "" {
			t, err := tx.Tunnel(f.Tunnel)
			if err != nil {
				return err
			}
			filter.Tunnel = t.ID
		}
		if f.Endpoint != "" {
			e, err := tx.Endpoint(f.Endpoint)
			if err != nil {
				return err
			}
			filter.Endpoint = e.ID
		}
		return nil
	})
	if err != nil {
		return err
	}
	return a.tables.ForgetLearned(filter)
}
