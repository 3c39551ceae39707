package agent

import (
	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/store"
)

// FlushFlows forgets the flows of an endpoint, or all if it is "".
func (a *Agent) FlushFlows(endpoint string) error {
	var filter datapath.FlowFilter
	err := a.store.View(func(tx *store.Tx) (err error) {
		filter, err = FlowsOf(tx, endpoint)
		return err
	})
	if err != nil {
		return err
	}
	return a.tables.FlushFlows(filter)
}

// FlowsOf means the flows of an endpoint, or all if it is "".
func FlowsOf(tx *store.Tx, endpoint string) (datapath.FlowFilter, error) {
	if endpoint == "" {
		return datapath.FlowFilter{}, nil
	}
	e, err := tx.Endpoint(endpoint)
	if err != nil {
		return datapath.FlowFilter{}, err
	}
	n, err := tx.Network(e.Network)
	return datapath.FlowFilter{Network: n.ID, Addresses: e.Addresses, Endpoint: e.ID}, err
}

// finishMigration is called when the current programs are attached everywhere.
func (a *Agent) finishMigration() error {
	lost, err := a.tables.FinishMigration()
	if lost > 0 {
		a.log.Warn("flows ended: the tables of their new size have no room for them", "flows", lost)
	}
	return err
}
