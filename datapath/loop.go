package datapath

import (
	"fmt"
	"time"

	"github.com/ebpnet/ebpnet/bpf"
)

// Loop is the state of loop detection on a trunk.
type Loop struct {
	Times   uint32        // how often the trunk was blocked
	Blocked time.Duration // remaining time; 0: not blocked
	Other   uint32        // the endpoint that sent the frames that came back
}

// EndpointLoop reads the loop state of a local endpoint that is a trunk.
func (t *Tables) EndpointLoop(id uint32) (Loop, error) {
	var trunk bpf.EbpnetTrunk
	if err := t.Maps.Trunks.Lookup(id, &trunk); err != nil {
		return Loop{}, fmt.Errorf("read entry %d of %v: %w", id, t.Maps.Trunks, err)
	}
	now, err := coarseNow()
	if err != nil {
		return Loop{}, err
	}
	return Loop{Times: trunk.Loops, Blocked: max(0, time.Duration(trunk.Blocked)-now), Other: trunk.Other}, nil
}
