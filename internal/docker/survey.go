package docker

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// stored is what the store has of Docker's.
type stored struct {
	networks  []spec.Network           // with a user that is Docker's
	endpoints map[string]spec.Endpoint // of Docker's containers, by name
	links     map[string][]spec.Link   // by client: those of such endpoints
}

func readStored(tx *store.Tx) (s stored, err error) {
	networks, err := tx.Networks()
	if err != nil {
		return s, err
	}
	s.networks = slices.DeleteFunc(networks, func(n spec.Network) bool { return !slices.ContainsFunc(n.Users, isDocker) })
	endpoints, err := tx.Endpoints()
	if err != nil {
		return s, err
	}
	s.endpoints = make(map[string]spec.Endpoint)
	for _, e := range endpoints {
		if isDocker(e.Container) {
			s.endpoints[e.Name] = e
		}
	}
	links, err := tx.Links()
	if err != nil {
		return s, err
	}
	s.links = make(map[string][]spec.Link)
	for _, l := range links {
		if _, ours := s.endpoints[l.Client]; ours {
			s.links[l.Client] = append(s.links[l.Client], l)
		}
	}
	return s, nil
}

// handed tells whether an endpoint's namespace is not known yet.
func (s stored) handed() bool {
	for _, e := range s.endpoints {
		if e.Handed() {
			return true
		}
	}
	return false
}

func isDocker(i spec.Identity) bool { return i.Engine == engineName }

// survey is what an engine says of its networks of this driver and of its
// containers. All of it was read after the store.
type survey struct {
	engine     string                   // its id
	networks   map[string]string        // names by id
	containers []container              // all that the engine has
	index      map[string]int           // of containers, by id
	inspected  map[string]bool          // containers whose links are known, by id
	pids       map[string]int           // by endpoint that runs in a namespace, as far as known
	owners     map[string]spec.Identity // containers by endpoint
	listed     map[string]bool          // endpoints that the engine has, of a container or not
}

// look makes a survey, and has those containers inspected that changed since
// they were last.
func look(ctx context.Context, engine *Engine, inspector *inspector, s stored) (*survey, error) {
	v := &survey{
		networks: make(map[string]string), index: make(map[string]int), inspected: make(map[string]bool), pids: make(map[string]int),
		owners: make(map[string]spec.Identity), listed: make(map[string]bool),
	}
	var err error
	if v.engine, err = engine.id(ctx); err != nil {
		return nil, err
	}
	networks, err := engine.networks(ctx, driverName)
	if err != nil {
		return nil, err
	}
	for _, n := range networks {
		v.networks[n.ID] = n.Name
	}
	containers, err := engine.containers(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range containers {
		v.add(c)
	}
	if err := v.addStarting(ctx, engine, s); err != nil {
		return nil, err
	}
	for i := range v.containers {
		v.complete(ctx, &v.containers[i], inspector)
	}
	return v, nil
}

// add adds a container as it is listed.
func (v *survey) add(listed listedContainer) {
	c := container{id: listed.ID, labels: listed.Labels, attached: make(map[string]attachment)}
	for _, name := range listed.Names {
		name = strings.TrimPrefix(name, "/")
		if !strings.Contains(name, "/") { // others are links of the default bridge
			c.name = name
		}
	}
	for network, e := range v.ours(listed.NetworkSettings) {
		if !listed.up() {
			e.EndpointID = ""
		}
		c.attached[network] = attachment{endpoint: shortID(e.EndpointID)}
		v.listed[shortID(e.EndpointID)] = true
	}
	v.index[c.id] = len(v.containers)
	v.containers = append(v.containers, c)
}

// ours gives the places of a container on networks of the driver, by the
// networks' ids.
func (v *survey) ours(settings networkSettings) map[string]engineEndpoint {
	ours := make(map[string]engineEndpoint)
	for called, e := range settings.Networks {
		if id, found := v.network(called, e.NetworkID); found {
			ours[id] = e
		}
	}
	return ours
}

// network gives the network of an id, or, where there is none yet, the one that
// is called so: by its name, its id or how that begins.
func (v *survey) network(called, id string) (string, bool) {
	if id != "" {
		_, found := v.networks[id]
		return id, found
	}
	found := ""
	for id, name := range v.networks {
		if name == called || id == called {
			return id, true
		}
		if len(called) >= spec.ShortID && strings.HasPrefix(id, called) {
			found = id
		}
	}
	return found, found != ""
}

// addStarting adds the endpoints that the list of containers does not tell of
// yet, from before their containers' programs start: a network tells of them.
func (v *survey) addStarting(ctx context.Context, engine *Engine, s stored) error {
	unlisted := make(map[string]bool) // ebpnet's names of networks
	for name, e := range s.endpoints {
		if !v.listed[name] {
			unlisted[e.Network] = true
		}
	}
	for _, n := range s.networks {
		for _, user := range n.Users {
			if _, there := v.networks[user.ID]; !there || !isDocker(user) || !unlisted[n.Name] {
				continue
			}
			endpoints, err := engine.endpoints(ctx, user.ID)
			if err != nil && !errors.Is(err, errAbsent) {
				return err
			}
			for id, e := range endpoints {
				name := shortID(e.EndpointID)
				v.listed[name] = true
				if i, found := v.index[id]; found { // another word stands for those without a container
					v.containers[i].attached[user.ID] = attachment{endpoint: name}
				}
			}
		}
	}
	return nil
}

// complete adds what inspecting a container told, and has it inspected if it
// is attached otherwise by now.
func (v *survey) complete(ctx context.Context, c *container, inspector *inspector) {
	if len(c.attached) == 0 {
		return
	}
	answer, known := inspector.answer(c.id)
	if value, labelled := answer.imageLabels[linkLabel]; !known || labelled && value == c.labels[linkLabel] {
		c.imageLabelled = known
		c.labels = nil
	}
	told := v.ours(answer.NetworkSettings)
	same := known && len(told) == len(c.attached)
	v.inspected[c.id] = known
	for network, at := range c.attached {
		e, on := told[network]
		if answer.State.Pid == 0 {
			e.EndpointID = ""
		}
		v.inspected[c.id] = v.inspected[c.id] && on
		c.attached[network] = attachment{endpoint: at.endpoint, links: e.Links}
		if shortID(e.EndpointID) != at.endpoint {
			same = false
			e.EndpointID = ""
		}
		if at.endpoint != "" {
			v.owners[at.endpoint] = spec.Identity{Engine: engineName, ID: c.id, Name: c.name}
		}
		if e.EndpointID != "" {
			v.pids[at.endpoint] = answer.State.Pid
		}
	}
	if !same {
		inspector.ask(ctx, c.id)
	}
}

// changes are what makes the store agree with an engine.
type changes struct {
	names  []naming
	places []placing
	links  map[string][]spec.Link // by client
	gone   []doubt
}

// naming is what an engine calls its network.
type naming struct {
	network string // in ebpnet
	user    spec.Identity
}

// placing is whose an endpoint is.
type placing struct {
	endpoint  string
	container spec.Identity
	pid       int // of a process in the endpoint's namespace; 0: not known, or known to the store
}

// doubt is something that the driver made and that the engine does not have: an
// endpoint, or a network as a user of ebpnet's.
type doubt struct {
	endpoint string
	inUse    bool // also if a container has the endpoint
	network  string
	user     spec.Identity
}

// certainty is how long a doubt must hold. The engine keeps a network or an
// endpoint only after the driver has made it, and may be slow to.
func (d doubt) certainty() time.Duration {
	if d.inUse || d.network != "" && d.user.Name == "" {
		return slowCertainty
	}
	return certainty
}

// doubts gives what the store has and the engine has not. A network that
// another engine has confirmed is that one's. An endpoint on such a network is
// taken away only if no container has it.
func doubts(s stored, v *survey) (all []doubt) {
	missing := make(map[string][]spec.Identity) // users by ebpnet's network
	for _, n := range s.networks {
		for _, user := range n.Users {
			if _, there := v.networks[user.ID]; !there && isDocker(user) {
				missing[n.Name] = append(missing[n.Name], user)
			}
		}
	}
	occupied := make(map[string]bool)
	for name, e := range s.endpoints {
		occupied[e.Network] = true
		if !v.listed[name] {
			all = append(all, doubt{endpoint: name})
			if len(missing[e.Network]) == 0 {
				all = append(all, doubt{endpoint: name, inUse: true})
			}
		}
	}
	for network, users := range missing {
		for _, user := range users {
			if !occupied[network] && (user.Name == "" || user.Instance == v.engine) {
				all = append(all, doubt{network: network, user: user})
			}
		}
	}
	return all
}

func (c changes) none() bool { return len(c.names)+len(c.places)+len(c.links)+len(c.gone) == 0 }

// compare gives what is different in the store, and what containers ask for
// and cannot have.
func compare(s stored, v *survey) (c changes, complaints map[complaint]struct{}) {
	for _, n := range s.networks {
		for _, user := range n.Users {
			name, there := v.networks[user.ID]
			if there && isDocker(user) && (name != user.Name || v.engine != user.Instance) {
				user.Name, user.Instance = name, v.engine
				c.names = append(c.names, naming{n.Name, user})
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.endpoints)) {
		e := s.endpoints[name]
		p := placing{endpoint: name, container: v.owners[name]}
		if e.Handed() {
			p.pid = v.pids[name]
		}
		if isDocker(p.container) && (p.container != e.Container || p.pid > 0) {
			c.places = append(c.places, p)
		}
	}
	c.links, complaints = compareLinks(s, v)
	return c, complaints
}

// compareLinks gives the links of the clients whose links should be others. A
// client that is not inspected yet keeps those that it has.
func compareLinks(s stored, v *survey) (map[string][]spec.Link, map[complaint]struct{}) {
	l := linking{
		containers: v.containers, networks: v.networks,
		exposed: make(map[string][]spec.Ports), others: make(map[string][]spec.Link),
		complaints: make(map[complaint]struct{}),
	}
	has := make(map[string][]spec.Link)
	for name, e := range s.endpoints {
		l.exposed[name] = e.Expose
		for _, link := range s.links[name] {
			if link.Engine == engineName {
				has[name] = append(has[name], link)
			} else {
				l.others[name] = append(l.others[name], link)
			}
		}
	}
	different := make(map[string][]spec.Link)
	for client, wanted := range l.wantedLinks() {
		if len(has[client]) > 0 && !v.inspected[v.owners[client].ID] {
			continue
		}
		if !slices.EqualFunc(wanted, has[client], sameLink) {
			different[client] = wanted
		}
	}
	return different, l.complaints
}

func sameLink(a, b spec.Link) bool {
	return a.Server == b.Server && a.Alias == b.Alias && slices.Equal(a.Ports, b.Ports)
}
