package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/ebpnet/ebpnet/internal/agent"
	hostdev "github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
)

// How long Follow waits: until it asks again for an engine that is away, at
// first and at most; and until it looks again where something is unsettled,
// without an event.
const (
	firstReturn = 100 * time.Millisecond
	lastReturn  = time.Second
	lookAgain   = certainty / 2
)

// How long something must hold that is over by itself as a rule: that the
// engine does not know of something, as while the driver makes it, before
// ebpnet takes it away, or that ebpnet cannot do something. It is longer for
// what somebody may still need.
const (
	certainty     = 5 * time.Second
	slowCertainty = 30 * time.Second
)

// Follow keeps what ebpnet knows of an engine's networks and containers as the
// engine has it, until ctx ends: what they are called, in which namespaces
// endpoints are, and the links that containers ask for. It takes away what the
// driver made and the engine never got to know. It waits for an engine that is
// away.
func Follow(ctx context.Context, engine *Engine, place agent.Place, log *slog.Logger) {
	defer engine.client.CloseIdleConnections()
	wait, told := firstReturn, false
	for {
		there, err := follow(ctx, engine, place, log)
		if ctx.Err() != nil {
			return
		}
		if there {
			wait, told = firstReturn, false
		}
		if !told {
			log.Info("waiting for the Docker engine", "error", err)
			told = true
		}
		pause(ctx, wait)
		wait = min(2*wait, lastReturn)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// follower follows an engine from the time that it is there until it is not.
type follower struct {
	engine    *Engine
	place     agent.Place
	log       *slog.Logger
	inspector *inspector
	changed   chan struct{}       // something may have; one is kept
	doubts    map[doubt]time.Time // what the engine does not have, and since when, or last looked at
	told      map[string]telling  // by warning
}

// follow follows an engine until that goes, and tells whether it was there and
// told all that is needed.
func follow(ctx context.Context, engine *Engine, place agent.Place, log *slog.Logger) (there bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := engine.subscribe(ctx)
	if err != nil {
		return false, err
	}
	f := &follower{
		engine: engine, place: place, log: log,
		changed: make(chan struct{}, 1),
		doubts:  make(map[doubt]time.Time), told: make(map[string]telling),
	}
	f.inspector = newInspector(engine, log, f.look)
	ended := make(chan error, 1)
	var reader sync.WaitGroup
	reader.Go(func() { ended <- f.read(ctx, events) })
	defer func() {
		cancel()
		err = errors.Join(err, events.close())
		reader.Wait()
		f.inspector.wait()
	}()
	for fresh := true; ; {
		unsettled, err := f.pass(ctx)
		if err != nil {
			return there, err
		}
		if !there {
			log.Info("following the Docker engine", "socket", engine.socket)
			there = true
		}
		var again <-chan time.Time
		if unsettled || fresh { // what an event is about may show a moment later
			again = time.After(lookAgain)
		}
		fresh = false
		select {
		case <-ctx.Done():
			return there, ctx.Err()
		case err := <-ended:
			return there, err
		case <-f.changed:
			fresh = true
		case <-again:
		}
	}
}

// look has another pass made, after the one that is under way.
func (f *follower) look() {
	select {
	case f.changed <- struct{}{}:
	default: // the next pass sees it too
	}
}

// read reads events until there are no more. What a container is linked to is
// asked for when it is created, as the engine does not tell that while it
// starts it.
func (f *follower) read(ctx context.Context, events *eventStream) error {
	for {
		ev, err := events.next()
		if err != nil {
			return err
		}
		switch {
		case ev.Type == "container" && slices.Contains([]string{"create", "die", "destroy"}, ev.Action):
			f.inspector.askAnew(ctx, ev.Actor.ID)
		case ev.Type == "network" && ev.Actor.Attributes["container"] != "":
			f.inspector.askAnew(ctx, ev.Actor.Attributes["container"])
		}
		f.look()
	}
}

// pass compares the store with the engine once and carries out the difference.
// It tells whether to look again without being told to. The error is the
// engine's; others are told of, and are a reason to look again.
func (f *follower) pass(ctx context.Context) (unsettled bool, err error) {
	s, err := f.readStore(ctx)
	if err != nil {
		f.tell([]warning{notFollowed(err)})
		return true, ctx.Err()
	}
	v, err := look(ctx, f.engine, f.inspector, s)
	if err != nil {
		return false, err
	}
	c, complaints := compare(s, v)
	var warnings []warning
	for complaint := range complaints {
		warnings = append(warnings, complaint.warning())
	}
	c.gone = f.doubt(s, v)
	if !c.none() {
		failed, complete := f.carryOut(ctx, c)
		warnings = append(warnings, failed...)
		unsettled = !complete
	}
	f.tell(warnings)
	return unsettled || len(f.doubts) > 0 || s.handed(), ctx.Err()
}

// readStore reads what is needed while others may read it too: a quiet engine
// keeps nobody from changing the store.
func (f *follower) readStore(ctx context.Context) (s stored, err error) {
	there, err := store.OpenReadOnly(ctx, f.place.State)
	if err != nil {
		return s, err
	}
	err = there.View(func(tx *store.Tx) (err error) {
		s, err = readStored(tx)
		return err
	})
	return s, errors.Join(err, there.Close())
}

// doubt keeps what the engine does not have, and gives what it has not had for
// so long that it does not come any more.
func (f *follower) doubt(s stored, v *survey) (certain []doubt) {
	now := time.Now()
	before := f.doubts
	f.doubts = make(map[doubt]time.Time)
	for _, d := range doubts(s, v) {
		since, known := before[d]
		if !known {
			since = now
		}
		if f.doubts[d] = since; now.Sub(since) >= d.certainty() {
			certain = append(certain, d)
			f.doubts[d] = now // what is left of it is looked at as late again
		}
	}
	return certain
}

// notFollowed is the warning of what could not be done. Containers come and go
// while ebpnet looks at them, so that some are over by themselves.
func notFollowed(err error) warning {
	mild := errors.Is(err, store.ErrNotFound) || errors.Is(err, hostdev.ErrNoNamespace) || errors.Is(err, hostdev.ErrStrangeInterface)
	return warning{text: "cannot follow the Docker engine", details: []any{"error", err}, mild: mild}
}

func (c complaint) warning() warning {
	return warning{text: "link is left out", details: []any{"container", c.container, "link", c.link, "reason", c.reason}}
}

// warning is a line of the log, written once while it holds. A mild one is
// written when it has held for a while: it may be over by itself.
type warning struct {
	text    string
	details []any
	mild    bool
}

// telling is what was done about a warning.
type telling struct {
	since   time.Time
	written bool
}

// tell writes those warnings that are due and were not written yet.
func (f *follower) tell(warnings []warning) {
	now := time.Now()
	before := f.told
	f.told = make(map[string]telling)
	for _, w := range warnings {
		key := fmt.Sprint(append([]any{w.text}, w.details...)...)
		told, known := before[key]
		if !known {
			told.since = now
		}
		if !told.written && (!w.mild || now.Sub(told.since) >= certainty) {
			f.log.Warn(w.text, w.details...)
			told.written = true
		}
		f.told[key] = told
	}
}

// carryOut makes changes in the store and the kernel. It gives those that
// failed, and tells whether all were made.
func (f *follower) carryOut(ctx context.Context, c changes) (failed []warning, complete bool) {
	a, err := agent.Open(ctx, f.place, f.log)
	if errors.Is(err, loader.ErrNotLoaded) {
		return nil, false
	}
	if err != nil {
		return []warning{notFollowed(err)}, false
	}
	note := func(err error) {
		if err != nil {
			failed = append(failed, notFollowed(err))
		}
	}
	for client, wanted := range c.links { // first, as programs wait for them
		note(a.SetLinks(client, engineName, wanted))
	}
	for _, n := range c.names {
		note(nameUser(a, n))
	}
	for _, p := range c.places {
		note(placeEndpoint(a, p))
	}
	for _, d := range c.gone {
		note(f.remove(a, d))
	}
	note(a.Close())
	return failed, len(failed) == 0
}

// nameUser keeps what an engine calls its network, if ebpnet still has it.
func nameUser(a *agent.Agent, n naming) error {
	var users []spec.Identity
	err := a.View(func(tx *store.Tx) error {
		network, err := tx.Network(n.network)
		users = network.Users
		return err
	})
	if err != nil || !slices.ContainsFunc(users, n.user.Same) {
		return err
	}
	_, err = a.JoinNetwork(n.network, n.user)
	return err
}

func placeEndpoint(a *agent.Agent, p placing) error {
	var ns spec.Netns
	if p.pid > 0 {
		var err error
		if ns, err = spec.ParseNetns("pid:" + strconv.Itoa(p.pid)); err != nil {
			return err
		}
	}
	return a.PlaceEndpoint(p.endpoint, p.container, ns)
}

// remove removes what the engine does not have.
func (f *follower) remove(a *agent.Agent, d doubt) error {
	if d.endpoint == "" {
		f.log.Warn("network is left: the Docker engine does not have its network any more", "network", d.network, "docker", d.user.ID)
		return a.LeaveNetwork(d.network, d.user)
	}
	var e spec.Endpoint
	err := a.View(func(tx *store.Tx) (err error) {
		e, err = tx.Endpoint(d.endpoint)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if !d.inUse {
		if idle, err := a.IsIdle(e); err != nil || !idle {
			return err
		}
	}
	f.log.Warn("endpoint removed: the Docker engine does not have it any more", "endpoint", d.endpoint, "container", e.Container.Name)
	return a.RemoveEndpoint(d.endpoint)
}
