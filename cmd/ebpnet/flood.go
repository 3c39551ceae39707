package main

import (
	"time"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// flood is what is flooded for a local endpoint, and what is known of a loop
// through it.
type flood struct {
	datapath.FloodShare
	Set            bool    `json:"set"`             // the limit, by the user
	Loops          uint32  `json:"loops"`           // how often it was blocked
	BlockedSeconds float64 `json:"blocked_seconds"` // still
	LoopWith       string  `json:"loop_with,omitempty"`
}

func readFlood(tables *datapath.Tables, tx *store.Tx, e spec.Endpoint) (*flood, error) {
	share, err := tables.FloodShare(e.ID)
	if err != nil {
		return nil, err
	}
	loop, err := tables.EndpointLoop(e.ID)
	if err != nil {
		return nil, err
	}
	f := &flood{
		FloodShare:     share,
		Set:            e.MaxFlood != 0,
		Loops:          loop.Times,
		BlockedSeconds: loop.Blocked.Seconds(),
	}
	if loop.Times == 0 {
		return f, nil
	}
	others, err := tx.EndpointsOn(e.Network)
	for _, other := range others {
		if other.ID == loop.Other {
			f.LoopWith = other.Name
		}
	}
	return f, err
}

// storm is a line of `status`: an endpoint whose floods were limited, or that
// was blocked for a loop.
type storm struct {
	Endpoint string `json:"endpoint"`
	Network  string `json:"network"`
	flood
}

func readStorms(tables *datapath.Tables, tx *store.Tx) ([]storm, error) {
	storms := []storm{}
	endpoints, err := tx.Endpoints()
	if err != nil {
		return nil, err
	}
	for _, e := range endpoints {
		if e.Remote() {
			continue
		}
		f, err := readFlood(tables, tx, e)
		if err != nil {
			return nil, err
		}
		if f.LimitedPackets > 0 || f.Loops > 0 {
			storms = append(storms, storm{e.Name, e.Network, *f})
		}
	}
	return storms, nil
}

func stormTable(storms []storm) table {
	t := table{headings: []string{"STORM FROM", "NETWORK", "NOT FLOODED", "LIMIT", "LOOPS", "LOOP WITH", "BLOCKED FOR"}}
	for _, s := range storms {
		blocked := ""
		if s.BlockedSeconds > 0 {
			blocked = time.Duration(s.BlockedSeconds * float64(time.Second)).Round(time.Second).String()
		}
		t.add(s.Endpoint, s.Network, number(s.LimitedPackets), number(uint64(s.Limit)), number(uint64(s.Loops)), s.LoopWith, blocked)
	}
	return t
}
