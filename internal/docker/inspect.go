package docker

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"sync"
)

// maxInspections is how many are under way at a time: more than an engine
// starts containers at a time, as each waits for its container.
const maxInspections = 256

// inspector inspects containers, each by itself, as the engine answers only
// when a container has started, and keeps what was answered last.
type inspector struct {
	engine  *Engine
	log     *slog.Logger
	changed func() // is called when an answer brought something new

	room  chan struct{}
	group sync.WaitGroup
	mutex sync.Mutex
	known map[string]inspectedContainer // by id
	asked map[string]bool               // by id, those under way; true: to be asked again
}

func newInspector(engine *Engine, log *slog.Logger, changed func()) *inspector {
	return &inspector{
		engine: engine, log: log, changed: changed,
		room:  make(chan struct{}, maxInspections),
		known: make(map[string]inspectedContainer),
		asked: make(map[string]bool),
	}
}

// answer gives what is known of a container.
func (i *inspector) answer(id string) (c inspectedContainer, known bool) {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	c, known = i.known[id]
	return c, known
}

// ask inspects a container, unless that is under way.
func (i *inspector) ask(ctx context.Context, id string) { i.start(ctx, id, false) }

// askAnew inspects a container, and once more if an inspection is under way,
// which may have missed what has happened.
func (i *inspector) askAnew(ctx context.Context, id string) { i.start(ctx, id, true) }

func (i *inspector) start(ctx context.Context, id string, again bool) {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	if before, asked := i.asked[id]; asked {
		i.asked[id] = before || again
		return
	}
	i.asked[id] = false
	i.group.Go(func() {
		for i.inspect(ctx, id) {
		}
	})
}

// inspect inspects once, and tells whether to do it again.
func (i *inspector) inspect(ctx context.Context, id string) (again bool) {
	var c inspectedContainer
	var err error
	select {
	case <-ctx.Done():
		err = ctx.Err()
	case i.room <- struct{}{}:
		c, err = i.engine.inspect(ctx, id)
		<-i.room
	}
	news, again := i.learn(id, c, err)
	if news {
		i.changed()
	}
	return again && ctx.Err() == nil
}

// learn keeps an answer. It tells whether it is a new one, and whether to ask
// again.
func (i *inspector) learn(id string, c inspectedContainer, err error) (news, again bool) {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	again = i.asked[id]
	delete(i.asked, id)
	if again {
		i.asked[id] = false
	}
	if errors.Is(err, errAbsent) {
		delete(i.known, id)
		return false, again
	}
	if err != nil {
		i.log.Debug("container is not inspected", "container", shortID(id), "error", err)
		return false, again
	}
	before, known := i.known[id]
	i.known[id] = c
	return !known || !reflect.DeepEqual(before, c), again
}

// wait waits for all inspections; their context should have ended.
func (i *inspector) wait() { i.group.Wait() }
