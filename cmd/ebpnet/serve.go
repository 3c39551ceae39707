package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/docker"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// Time-outs of the metrics server: a scrape is short, and so is a shutdown.
const (
	headerTimeout   = 5 * time.Second
	shutdownTimeout = 2 * time.Second
)

const pluginsFlag = "docker-plugins"

func serveCommand() *cli.Command {
	return &cli.Command{
		Name:      "serve",
		Usage:     "serve metrics and Docker, and follow changes of devices and namespaces",
		UsageText: "ebpnet serve [--listen 127.0.0.1:9469] [--docker]",
		Description: "Traffic does not need it: without it, changes are followed by the next command.\n" +
			"With --docker, a Docker engine on this host can create networks and containers with it.\n" +
			"Example: ebpnet serve --docker",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "listen", Usage: "`ADDRESS` of /metrics", Value: "127.0.0.1:9469"},
			&cli.BoolFlag{Name: "docker", Usage: "be Docker's network and IPAM driver ebpnet"},
			&cli.StringFlag{Name: pluginsFlag, Usage: "`DIRECTORY` where the engine looks for plugins", Value: docker.PluginsDirectory},
			&cli.StringFlag{
				Name: "docker-host", Usage: "`URL` of the engine",
				Value: docker.DefaultHost, EnvVars: []string{"DOCKER_HOST"},
			},
			&cli.BoolFlag{Name: "debug", Usage: "log each of Docker's calls with its answer"},
		},
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			_, port, err := net.SplitHostPort(c.String("listen"))
			if err == nil {
				_, err = strconv.ParseUint(port, 10, 16)
			}
			if err != nil {
				return usagef("--listen %q: want ADDRESS:PORT", c.String("listen"))
			}
			if !c.Bool("docker") && c.IsSet(pluginsFlag) {
				return usagef("--%s %q: give --docker too", pluginsFlag, c.String(pluginsFlag))
			}
			return serve(c)
		},
	}
}

func serve(c *cli.Context) error {
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "ebpnet_build_info",
		Help:        "Always 1; the labels tell the version.",
		ConstLabels: prometheus.Labels{"version": version, "go_version": runtime.Version()},
	})
	build.Set(1)
	registry := prometheus.NewRegistry()
	registry.MustRegister(build, datapath.NewCollector(
		func() (*datapath.Tables, error) { return datapath.Open(c.String("pin")) },
		(&names{c: c}).get,
	))
	routes := http.NewServeMux()
	routes.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: routes, ReadHeaderTimeout: headerTimeout}

	listener, err := net.Listen("tcp", c.String("listen"))
	if err != nil {
		return fmt.Errorf("serve metrics: %w", err)
	}
	signalled, stop := signal.NotifyContext(c.Context, os.Interrupt, unix.SIGTERM)
	defer stop()
	context.AfterFunc(signalled, stop) // a second signal ends it at once
	group, ctx := errgroup.WithContext(signalled)
	if c.Bool("docker") {
		if err := serveDocker(ctx, c, group); err != nil {
			return errors.Join(err, listener.Close())
		}
	}
	// It answers from here on: systemd starts what waits for it, as Docker does.
	if _, err := daemon.SdNotify(true, daemon.SdNotifyReady); err != nil {
		logger().Warn("cannot tell the service manager to be ready", "error", err)
	}
	group.Go(func() error { return agent.Serve(ctx, place(c), logger()) })
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve metrics: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		ending, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
		defer cancel()
		return server.Shutdown(ending)
	})
	return group.Wait()
}

// serveDocker has a group serve an engine and follow it.
func serveDocker(ctx context.Context, c *cli.Context, group *errgroup.Group) error {
	engine, err := docker.NewEngine(c.String("docker-host"))
	if err != nil {
		return err
	}
	listener, err := docker.Listen(ctx, c.String(pluginsFlag))
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if c.Bool("debug") {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	group.Go(func() error { return docker.NewPlugin(place(c), log).Serve(ctx, listener) })
	group.Go(func() error {
		docker.Follow(ctx, engine, place(c), log)
		return nil
	})
	return nil
}

// namesTimeout is how long a scrape waits for a command that changes the store.
const namesTimeout = time.Second

// names gives the nouns that metrics are labelled with: those of the store, or
// while it is held for long those that it had last. One scrape at a time.
type names struct {
	c     *cli.Context
	last  datapath.Names
	mutex sync.Mutex
}

func (n *names) get() (datapath.Names, error) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	ctx, cancel := context.WithTimeout(n.c.Context, namesTimeout)
	defer cancel()
	fresh, err := readNames(ctx, n.c)
	if errors.Is(err, store.ErrBusy) {
		return n.last, nil
	}
	if err == nil {
		n.last = fresh
	}
	return fresh, err
}

func readNames(ctx context.Context, c *cli.Context) (datapath.Names, error) {
	found := datapath.Names{Networks: map[string]uint32{}, Tunnels: map[string]uint32{}}
	err := readWithin(ctx, c, func(tx *store.Tx) error {
		endpoints, err := tx.Endpoints()
		if err != nil {
			return err
		}
		for _, e := range endpoints {
			if !e.Remote() {
				found.Endpoints = append(found.Endpoints, datapath.NamedEndpoint{
					Name: e.Name, Network: e.Network, ID: e.ID,
					Engine: e.Container.Engine, Container: e.Container.Name, ContainerID: e.Container.ID,
				})
			}
		}
		if found.Ports, err = namedPorts(tx, endpoints); err != nil {
			return err
		}
		networks, err := tx.Networks()
		for _, n := range networks {
			found.Networks[n.Name] = n.ID
		}
		if err != nil {
			return err
		}
		var tunnels []spec.Tunnel
		tunnels, err = tx.Tunnels()
		for _, t := range tunnels {
			found.Tunnels[t.Name] = t.ID
		}
		return err
	})
	return found, err
}

func namedPorts(tx *store.Tx, endpoints []spec.Endpoint) ([]datapath.NamedPort, error) {
	networks := map[string]string{}
	for _, e := range endpoints {
		networks[e.Name] = e.Network
	}
	ports, err := tx.Ports()
	named := make([]datapath.NamedPort, len(ports))
	for i, p := range ports {
		named[i] = datapath.NamedPort{Endpoint: p.Endpoint, Network: networks[p.Endpoint], Name: p.String(), ID: p.ID}
	}
	return named, err
}
