// Package cni is ebpnet as a plugin of the Container Network Interface, spec
// versions 0.4.0 to 1.1.0: one process a call, which puts a container on a
// network and takes it away again. What the protocol says is read and written
// by containernetworking/cni; what the nouns mean is up to package agent.
//
// See https://github.com/containernetworking/cni/blob/main/SPEC.md.
package cni

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/spec"
)

// Name is what the binary is called where it is a plugin, and the type of the
// plugin in a conflist.
const Name = "ebpnet-cni"

// Engine is the engine that endpoints made here belong to.
const Engine = spec.CNI

// Versions of the spec: the oldest that is spoken (it brought CHECK, and the
// result on DEL), and the first whose results tell MTUs.
const (
	oldestVersion = "0.4.0"
	mtuVersion    = "1.1.0"
)

// call is one call of the plugin.
type call struct {
	args  *skel.CmdArgs
	conf  conf
	place agent.Place
	log   *slog.Logger
}

// Main answers the call that a runtime describes in the environment and on
// standard input, and gives the exit code. Where the host's state lies is said
// by the conflist, or else by p.
func Main(ctx context.Context, p agent.Place, log *slog.Logger) int {
	verb := func(do func(*call, context.Context) error) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error {
			c := &call{args: args, place: p, log: log}
			err := c.readConf()
			if err == nil {
				err = do(c, ctx)
			}
			return explained(err)
		}
	}
	failed := skel.PluginMainFuncsWithError(skel.CNIFuncs{
		Add:    verb((*call).add),
		Del:    verb((*call).del),
		Check:  verb((*call).check),
		GC:     verb((*call).gc),
		Status: verb((*call).status),
	}, version.VersionsStartingFrom(oldestVersion), "CNI plugin of ebpnet")
	if failed == nil {
		return 0
	}
	if err := failed.Print(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return 1
}

func (c *call) readConf() (err error) {
	var strange []string
	if c.conf, strange, err = parseConf(c.args.StdinData); err != nil {
		return err
	}
	for _, key := range strange {
		c.log.Warn("the network configuration has a field that ebpnet does not know", "network", c.conf.Name, "field", key)
	}
	if c.conf.State != "" {
		c.place.State = c.conf.State
	}
	if c.conf.Pin != "" {
		c.place.Pins = c.conf.Pin
	}
	return nil
}

// endpoint is the name of the attachment's endpoint.
func (c *call) endpoint() string {
	return c.conf.endpointOf(c.args.ContainerID, c.args.IfName)
}

// endpointOf names the endpoint of an attachment to this network of CNI, which
// may be one of several that are the same network of ebpnet.
func (c conf) endpointOf(container, ifname string) string {
	return spec.EndpointName(container, c.Name, ifname)
}

// withAgent runs f on the opened host.
func (c *call) withAgent(ctx context.Context, f func(*agent.Agent) error) error {
	return agent.With(ctx, c.place, c.log, f)
}
