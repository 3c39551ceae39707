package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// linked is a link with its two ends.
type linked struct {
	spec.Link
	client, server spec.Endpoint
}

// linksOf gives the links that an endpoint is an end of.
func linksOf(tx *store.Tx, endpoint string) ([]linked, error) {
	links, err := tx.LinksOf(endpoint)
	if err != nil {
		return nil, err
	}
	found := make([]linked, 0, len(links))
	for _, l := range links {
		full, err := withEnds(tx, l)
		if err != nil {
			return nil, err
		}
		found = append(found, full)
	}
	return found, nil
}

func withEnds(tx *store.Tx, l spec.Link) (full linked, err error) {
	full.Link = l
	if full.client, err = tx.Endpoint(l.Client); err != nil {
		return full, err
	}
	full.server, err = tx.Endpoint(l.Server)
	return full, err
}

// AddLink makes a link. Without ports it is to those that the server exposes.
func (a *Agent) AddLink(l spec.Link) (spec.Link, error) {
	var full linked
	err := a.do(change{
		noun: store.Change{Kind: store.KindLink, Key: store.LinkKey(l.Client, l.Server)},
		write: func(tx *store.Tx) (err error) {
			if full, err = withEnds(tx, l); err != nil {
				return err
			}
			if err := checkNewLink(tx, &full); err != nil {
				return err
			}
			return tx.PutLink(full.Link)
		},
		apply: func() error {
			for _, entry := range linkEntries(full.Link, full.client, full.server) {
				if err := a.tables.PutLink(entry); err != nil {
					return fmt.Errorf("link from %q to %q, ports %d to %d: %w", l.Client, l.Server, entry.First, entry.Last, err)
				}
			}
			return nil
		},
		revert: func(tx *store.Tx) error { return tx.DeleteLink(l.Client, l.Server) },
	})
	return full.Link, err
}

func checkNewLink(tx *store.Tx, l *linked) error {
	if l.Client == l.Server {
		return fmt.Errorf("%w link: endpoint %q cannot be linked to itself", spec.ErrInvalid, l.Client)
	}
	if l.client.Network != l.server.Network {
		return fmt.Errorf("link %w: %q is on network %q and %q on %q; a link is inside one network",
			ErrUnfit, l.Client, l.client.Network, l.Server, l.server.Network)
	}
	if len(l.Ports) == 0 {
		l.Ports = l.server.Expose
	}
	if len(l.Ports) == 0 {
		return fmt.Errorf("link %w: %q exposes no ports; name some with --port", ErrUnfit, l.Server)
	}
	others, err := tx.LinksOf(l.Client)
	if err != nil {
		return err
	}
	for _, other := range others {
		if other.Client != l.Client {
			continue
		}
		if other.Server == l.Server {
			return fmt.Errorf("link from %q to %q %w: remove it first", l.Client, l.Server, ErrExists)
		}
		if other.Alias == l.Alias {
			return fmt.Errorf("alias %q of %q is %w by its link to %q; choose another", l.Alias, l.Client, ErrInUse, other.Server)
		}
	}
	return nil
}

// RemoveLink removes a link; its connections end with their next packet.
func (a *Agent) RemoveLink(client, server string) error {
	var full linked
	return a.do(change{
		noun: store.Change{Kind: store.KindLink, Key: store.LinkKey(client, server)},
		write: func(tx *store.Tx) error {
			l, err := tx.Link(client, server)
			if err != nil {
				return err
			}
			if full, err = withEnds(tx, l); err != nil {
				return err
			}
			return tx.DeleteLink(client, server)
		},
		apply:  func() error { return a.deleteLink(full) },
		revert: func(tx *store.Tx) error { return tx.PutLink(full.Link) },
	})
}

func (a *Agent) deleteLink(l linked) error {
	for _, entry := range linkEntries(l.Link, l.client, l.server) {
		if err := a.tables.DeleteLink(entry); err != nil {
			return err
		}
	}
	return nil
}

// Linked is a link as its client sees it, its ends by the names that they have
// for their engine.
type Linked struct {
	spec.Link
	To spec.Endpoint
}

// LinksFrom gives the links that an endpoint is the client of, by alias.
func LinksFrom(tx *store.Tx, client string) ([]Linked, error) {
	if _, err := tx.Endpoint(client); err != nil {
		return nil, err
	}
	all, err := linksOf(tx, client)
	if err != nil {
		return nil, err
	}
	var from []Linked
	for _, l := range all {
		if l.Client == client {
			l.Client = cmp.Or(l.client.Container.Name, l.Client)
			l.Server = cmp.Or(l.server.Container.Name, l.Server)
			from = append(from, Linked{l.Link, l.server})
		}
	}
	slices.SortFunc(from, func(a, b Linked) int { return strings.Compare(a.Alias, b.Alias) })
	return from, nil
}
