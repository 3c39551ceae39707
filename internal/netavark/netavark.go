// Package netavark answers netavark, the network stack of Podman, as one of
// its plugins: `create` makes an ebpnet network of a Podman network, `setup`
// an endpoint of a container's interface on it, and `teardown` removes that.
// What is asked comes as JSON on standard input; the answer is JSON on standard
// output. It knows nothing of the kernel (package agent).
//
// The types are those of netavark's plugin-API.md, version 1.0.0. To see what
// Podman sends, put a script in ebpnet's place that keeps its input:
// tee /tmp/asked | ebpnet "$@".
package netavark

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/spec"
)

// engine is what Podman is called in the store.
const engine = spec.Podman

// apiVersion is the version of the plugin API that `info` tells.
const apiVersion = "1.0.0"

// maxInput bounds what is read, in bytes: a container that publishes every
// port there is by itself needs half of it.
const maxInput = 16 << 20

// Plugin answers for one host.
type Plugin struct {
	Place   agent.Place
	Version string // of ebpnet
	Log     *slog.Logger
}

// Verbs names what Run understands.
func Verbs() []string { return []string{"create", "setup", "teardown", "info"} }

// Run answers one call; args are what follows the verb. An error is told on
// stdout, where netavark looks for it, and given back for the exit code alone.
func (p Plugin) Run(ctx context.Context, verb string, args []string, stdin io.Reader, stdout io.Writer) error {
	answer, err := p.answer(ctx, verb, args, stdin)
	if err != nil {
		answer = map[string]string{"error": agent.OneLine(err)}
	}
	if answer == nil {
		return nil
	}
	return errors.Join(err, json.NewEncoder(stdout).Encode(answer))
}

func (p Plugin) answer(ctx context.Context, verb string, args []string, stdin io.Reader) (any, error) {
	switch {
	case verb == "info" && len(args) == 0:
		return map[string]string{"version": p.Version, "api_version": apiVersion}, nil
	case verb == "create" && len(args) == 0:
		in, err := read(stdin)
		if err != nil {
			return nil, err
		}
		return p.create(ctx, in)
	case verb == "setup" && len(args) == 1:
		c, err := readContainer(stdin)
		if err != nil {
			return nil, err
		}
		return p.setup(ctx, args[0], c)
	case verb == "teardown" && len(args) == 1:
		c, err := readContainer(stdin)
		if err != nil {
			return nil, err
		}
		return nil, p.teardown(ctx, c)
	}
	return nil, fmt.Errorf("%w call %q: want create, setup NETNS, teardown NETNS or info, as netavark calls its plugins",
		spec.ErrInvalid, strings.Join(append([]string{verb}, args...), " "))
}

func read(stdin io.Reader) ([]byte, error) {
	in, err := io.ReadAll(io.LimitReader(stdin, maxInput+1))
	if err != nil {
		return nil, fmt.Errorf("read standard input: %w", err)
	}
	if len(in) > maxInput {
		return nil, fmt.Errorf("%w input: it is longer than %d bytes", spec.ErrInvalid, maxInput)
	}
	return in, nil
}

// decode reads the JSON that netavark sends on standard input.
func decode(in []byte, v any) error {
	if err := json.Unmarshal(in, v); err != nil {
		return fmt.Errorf("%w input: want the JSON that netavark sends: %w", spec.ErrInvalid, err)
	}
	return nil
}

// open opens the host for f.
func (p Plugin) open(ctx context.Context, f func(*agent.Agent) error) error {
	return agent.With(ctx, p.Place, p.Log, f)
}
