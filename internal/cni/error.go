package cni

import (
	"errors"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
)

// Error codes beside those that package types knows.
const (
	// errNotAvailable is the spec's, for STATUS: ADD would fail now.
	errNotAvailable uint = 50
	// errTaken says that something else has what is asked for. Codes from 100
	// are a plugin's own.
	errTaken uint = 100
)

// explained makes of an error what the runtime is told: a code and one line.
// Whose code is settled already keeps it.
func explained(err error) error {
	if err == nil {
		return nil
	}
	text := agent.OneLine(err)
	var settled *types.Error
	if errors.As(err, &settled) {
		return types.NewError(settled.Code, text, "")
	}
	return types.NewError(codeOf(err), text, "")
}

func codeOf(err error) uint {
	is := func(targets ...error) bool {
		for _, target := range targets {
			if errors.Is(err, target) {
				return true
			}
		}
		return false
	}
	switch {
	case is(host.ErrNoNamespace, host.ErrOwnNamespace):
		return types.ErrInvalidNetNS
	case is(agent.ErrExists, agent.ErrInUse, host.ErrNameInUse):
		return errTaken
	case is(spec.ErrInvalid, agent.ErrUnfit, store.ErrNotFound):
		return types.ErrInvalidNetworkConfig
	case is(loader.ErrNotLoaded, store.ErrBusy):
		return types.ErrTryAgainLater
	}
	return types.ErrInternal
}

// badEnvironment is an error in an environment variable of the call.
func badEnvironment(err error) error {
	return types.NewError(types.ErrInvalidEnvironmentVariables, agent.OneLine(err), "")
}
