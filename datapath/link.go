package datapath

import "github.com/ebpnet/ebpnet/bpf"

// Link is permission for endpoint Client to open connections to the ports First to
// Last of endpoint Server.
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

// PutLink opens the link's ports.
func (t *Tables) PutLink(l Link) error {
	for _, key := range l.keys() {
		if err := put(t.Maps.Links, key, uint32(1)); err != nil {
			return err
		}
	}
	return nil
}

// DeleteLink shuts the link's ports, for established connections too.
func (t *Tables) DeleteLink(l Link) error {
	for _, key := range l.keys() {
		if err := remove(t.Maps.Links, key); err != nil {
			return err
		}
	}
	return nil
}
