package datapath

import (
	"errors"
	"fmt"

	"github.com/ebpnet/ebpnet/bpf"
)

// Link allows endpoint Client to open connections to the ports First to Last of
// endpoint Server.
type Link struct {
	Client, Server uint32 // endpoint ids
	Protocol       uint8  // IANA number: TCP or UDP
	First, Last    uint16
}

func (l Link) keys() []bpf.EbpnetLinkKey {
	keys := make([]bpf.EbpnetLinkKey, 0, int(l.Last)-int(l.First)+1)
	for port := int(l.First); port <= int(l.Last); port++ {
		keys = append(keys, bpf.EbpnetLinkKey{
			Client:   l.Client,
			Server:   l.Server,
			Port:     networkOrder16(uint16(port)),
			Protocol: l.Protocol,
		})
	}
	return keys
}

// PutLink allows the link's ports.
func (t *Tables) PutLink(l Link) error {
	for _, key := range l.keys() {
		if err := put(t.Maps.Links, key, uint32(1)); err != nil {
			return err
		}
	}
	return t.linksChanged()
}

// DeleteLink removes the permission, for established connections too.
func (t *Tables) DeleteLink(l Link) error {
	var failed error
	for _, key := range l.keys() {
		failed = errors.Join(failed, remove(t.Maps.Links, key))
	}
	// Also after an error: some of the entries may be gone.
	return errors.Join(failed, t.linksChanged())
}

// linksChanged makes every flow look up its link again.
func (t *Tables) linksChanged() error {
	const only = uint32(0)
	var revision uint32
	if err := t.Maps.LinksRevision.Lookup(only, &revision); err != nil {
		return fmt.Errorf("read %v: %w", t.Maps.LinksRevision, err)
	}
	return put(t.Maps.LinksRevision, only, max(revision+1, 1)) // 0 means no revision
}
