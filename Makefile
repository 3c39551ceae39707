# The only entry point: `make help` lists what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PREFIX ?= /usr/local
DESTDIR ?=
# How many inputs each fuzz target gets. A number and not a time: until Go 1.27
# a target whose time ends may fail with "context deadline exceeded"
# (golang/go#75804).
FUZZTIME ?= 5000x
# How many frames fuzz-long sends, and from which seed.
FRAMES ?= 10000000
SEED ?= 13
# How long each flood of attack-floods lasts.
FLOODTIME ?= 5s
# How often test-upgrades upgrades.
UPGRADES ?= 10
# More arguments for go test; `make test CGO_ENABLED=1 GOTESTFLAGS=-race`
GOTESTFLAGS ?=
# Without cgo by default: a static binary, and no need of a C compiler.
export CGO_ENABLED ?= 0

VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
# The version is stamped from git here, so go need not ask git: it would
# refuse to build where another user owns the clone.
GO_BUILD := go build -trimpath -buildvcs=false

# The binary that tests, demo and bench run.
export EBPNET := $(CURDIR)/bin/ebpnet

# What compiles the C programs. The objects are committed, so the compiler is
# pinned: another version would give other bytes.
CLANG_VERSION := 19.1.7
CLANG_FORMAT := clang-format-19
export BPF_CLANG := clang-19
export BPF_STRIP := llvm-strip-19
# -mcpu=v3 (Linux 5.1) has 32-bit and all conditional jumps. The include is
# where Debian keeps asm/. The prefix map keeps the clone's path out of them.
export BPF_CFLAGS := -O2 -g -mcpu=v3 -std=gnu11 -Wall -Wextra -Wno-unused-parameter -Werror \
	-I/usr/include/$(shell uname -m)-linux-gnu -ffile-prefix-map=$(CURDIR)/=
C_FILES = $(wildcard bpf/*.c bpf/*.h bpf/headers/*.h)

GOLANGCI_LINT_VERSION := v2.15.0
GOLANGCI_LINT := bin/tools/golangci-lint-$(GOLANGCI_LINT_VERSION)

# Debian packages of the programs that each target runs.
DEMO_PACKAGES := curl iproute2 iputils-ping procps redis-server redis-tools \
	util-linux
TEST_PACKAGES := $(DEMO_PACKAGES) busybox-static \
	containernetworking-plugins docker-compose docker.io ethtool iperf3 \
	iptables jq nftables openvswitch-switch podman runc socat tcpdump

# Podman 5, which Debian 12 has not: programs and libraries of Debian 13,
# unpacked for the tests alone, which see them in place of their own /usr.
export PODMAN5 := $(CURDIR)/bin/podman5
PODMAN5_SUITE := trixie
PODMAN5_PACKAGES := podman netavark conmon runc \
	golang-github-containers-common libacl1 libassuan9 libatomic1 libattr1 \
	libaudit1 libbsd0 libbz2-1.0 libc6 libcap-ng0 libcap2 libcrypt1 \
	libgcc-s1 libglib2.0-0t64 libgpg-error0 libgpgme11t64 libmd0 libpam0g \
	libpcre2-8-0 libseccomp2 libselinux1 libsemanage2 libsepol2 \
	libsqlite3-0 libsubid5 libsystemd0

# Kernels that the kernel tier boots: the cloud images of these Debian suites,
# unpacked. They have Linux 6.1, 6.12 and 7.2. The one that takes longest is
# first.
KERNEL_SUITES := forky trixie bookworm
KERNELS := $(KERNEL_SUITES:%=$(CURDIR)/bin/kernel-%)
KERNEL_PACKAGES := ethtool iproute2 iputils-ping kmod openvswitch-switch \
	qemu-system-x86 redis-server redis-tools seabios xz-utils

# What compiles, and what formats.
CLANG_PACKAGES := clang-19 llvm-19 libbpf-dev linux-libc-dev
FORMAT_PACKAGES := clang-format-19

# $(call need,PACKAGES) installs those that are missing, and leaves the
# services among them stopped: without systemd by pretending to be in
# single-user mode, with it by masking their units meanwhile.
define need
	@if ! command -v apt-get >/dev/null; then \
		echo "$@: no apt here; it needs what Debian calls: $(strip $(1))" >&2; \
		exit 0; \
	fi; \
	installed=$$(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' \
		$(1) 2>/dev/null | sed -n 's/^installed //p' || true); \
	missing=$$(comm -13 <(sort -u <<<"$$installed") \
		<(printf '%s\n' $(1) | sort -u) | xargs); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then \
		echo "$@: packages are missing, as root: apt-get install $$missing" >&2; \
		exit 1; \
	fi; \
	echo "$@: installing $$missing"; \
	export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1; \
	units=$$(for package in $$missing; do case $$package in \
		docker.io) echo containerd docker docker.socket ;; \
		openvswitch-switch) echo openvswitch-switch ovs-record-hostname ;; \
		podman) echo podman podman.socket podman-restart \
			podman-auto-update podman-auto-update.timer ;; \
		redis-server) echo redis-server ;; \
	esac; done | xargs); \
	if [ -d /run/systemd/system ] && [ -n "$$units" ]; then \
		systemctl --quiet --runtime mask $$units; \
		trap 'systemctl --quiet --runtime unmask $$units; \
			systemctl --quiet disable $$units' EXIT; \
	fi; \
	apt-get -qq update; \
	apt-get -qq install -y --no-install-recommends $$missing >/dev/null
endef

# $(call need_root) stops, in one line, where only root can go on.
define need_root
	@if [ "$$(id -u)" != 0 ]; then echo "$@: must be root" >&2; exit 1; fi
endef

# $(call need_clang) refuses a compiler that would give other bytes.
define need_clang
	@$(BPF_CLANG) --version | grep -qF ' version $(CLANG_VERSION) ' || { \
		echo "$@: want clang $(CLANG_VERSION), have $$($(BPF_CLANG) --version | sed q)" >&2; \
		exit 1; \
	}
endef

.PHONY: build demo test fuzz-long attack-floods test-upgrades test-kernels test-kernels-long bench bench-ci generate verify lint fmt install clean help

build: ## bin/ebpnet (this is the default)
	$(GO_BUILD) -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ebpnet ./cmd/ebpnet

# Not `go run`: it would hide the exit code, and die of a signal that the
# program cleans up after.
demo: build ## show the main job on two hosts made of namespaces (root)
	$(need_root)
	$(call need,$(DEMO_PACKAGES))
	$(GO_BUILD) -o bin/demo ./test/demo
	@exec bin/demo

# $(call unpack,SUITE,COMMAND) unpacks packages of another suite of Debian into
# the target; COMMAND prints their names. apt has lists and a cache of its own,
# from this machine's mirror; it checks the archive's signatures as always.
# Debian's keys of the suite come with debian-archive-keyring.
define unpack
	@command -v apt-get >/dev/null || { echo "$@: no apt here; unpack there what Debian $(1) has" >&2; exit 1; }
	@echo "unpacking $(@F) of Debian $(1), once"
	@rm -rf $@.new && mkdir -p $@.new/apt/{lists,archives}/partial $@.new/apt/debs
	@apt-get -qq update # or apt does not tell its mirror
	@cd $@.new/apt && : >status && \
	mirror=$$(apt-get indextargets --format '$$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | sort -u | sed q) && \
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $$mirror $(1) main" >sources.list && \
	own=(-qq -o Dir::State="$$PWD" -o Dir::State::status="$$PWD/status" -o Dir::Cache="$$PWD" \
		-o Dir::Etc::SourceList="$$PWD/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o APT::Sandbox::User=root -o Acquire::Languages=none) && \
	apt-get "$${own[@]}" update && packages=$$($(2)) && cd debs && \
	apt-get "$${own[@]}" download $$packages && \
	for deb in *.deb; do dpkg-deb -x "$$deb" $@.new; done
	@rm -rf $@.new/apt $@ && mv $@.new $@ && touch $@
endef

$(PODMAN5):
	$(call unpack,$(PODMAN5_SUITE),echo $(PODMAN5_PACKAGES))

# The meta package depends on the packages of the suite's kernel.
$(KERNELS): $(CURDIR)/bin/kernel-%:
	$(call unpack,$*,apt-cache "$${own[@]}" depends --recurse --important linux-image-cloud-amd64 | \
		grep -E '^linux-(image|binary|modules)-[0-9]' | sort -u)

test: build $(if $(filter 0,$(shell id -u)),$(PODMAN5)) ## all tests, then each fuzz target for FUZZTIME=5000x; without root what needs no privilege
ifeq ($(shell id -u),0)
	$(call need,$(TEST_PACKAGES))
else
	@echo "not root: leaving out the kernel and topology tests"
endif
	go test -count=1 -timeout 75m $(GOTESTFLAGS) ./...
	@while IFS=: read -r file func; do \
		target="^$${func#func }\$$" package=$$(dirname "$$file"); \
		(set -x; go test -run '^$$' -fuzz "$$target" -fuzztime $(FUZZTIME) "$$package" </dev/null); \
	done < <(grep -roE '^func Fuzz[A-Za-z0-9_]+' --include='*_test.go' . | sort)

fuzz-long: ## send FRAMES=10000000 frames to every program, and check what leaves; SEED=13 (root)
	$(need_root)
	EBPNET_FUZZ_FRAMES=$(FRAMES) EBPNET_FUZZ_SEED=$(SEED) \
		go test -count=1 -timeout 0 -run '^TestFuzzInvariants$$' -v ./datapath

attack-floods: build ## flood from a container in every way for FLOODTIME=5s each, and count what others lose (root)
	$(need_root)
	EBPNET_FLOODS=$(FLOODTIME) go test -count=1 -timeout 0 -run '^TestFloods$$' -v ./test/attack

test-upgrades: build ## upgrade from the first release under load, and kill such upgrades, UPGRADES=10 times each (root)
	$(need_root)
	$(call need,$(TEST_PACKAGES))
	EBPNET_UPGRADES=$(UPGRADES) go test -count=1 -timeout 0 -run 'UpgradeFromRelease$$' -v ./test

test-kernels: build $(if $(filter 0,$(shell id -u)),$(KERNELS)) ## boot Linux 6.1, 6.12 and 7.2 in QEMU, and test there that ebpnet loads and passes packets (root)
test-kernels-long: build $(if $(filter 0,$(shell id -u)),$(KERNELS)) ## test-kernels with all golden packets and more (root)
test-kernels test-kernels-long:
	$(need_root)
	$(call need,$(KERNEL_PACKAGES))
	$(GO_BUILD) -o bin/kernel ./test/kernel
	@exec bin/kernel $(if $(filter %-long,$@),-all) $(KERNELS)

# The tests of package datapath tell what each of its paths costs.
define build_bench
	$(GO_BUILD) -o bin/bench ./bench
	go test -c -trimpath -o bin/datapath.test ./datapath
	@mkdir -p bin/bench-results
endef

bench: build ## measure against the bare wire, a Linux bridge, iptables, nftables, VXLAN and Open vSwitch, into bin/bench-results/ (root)
	$(need_root)
	$(call need,$(TEST_PACKAGES))
	$(build_bench)
	@exec bin/bench --rounds 5 --duration 400ms --json bin/bench-results/bench.json --svg bin/bench-results/bench

bench-ci: build ## measure what bench/floors.go holds ebpnet to, and fail below it (root)
	$(need_root)
	$(call need,$(TEST_PACKAGES))
	$(build_bench)
	@exec bin/bench --ci --json bin/bench-results/ci.json --svg bin/bench-results/ci

generate: ## compile bpf/, write its Go types, and make the objects of the upgrade tests
	$(call need,$(CLANG_PACKAGES))
	$(need_clang)
	go generate ./bpf
	loader/testdata/other_layout.sh

verify: ## regenerate, and fail if what is committed differs; check modules
	$(call need,$(CLANG_PACKAGES))
	$(need_clang)
	go generate ./bpf
	@git diff --exit-code --stat -- bpf && \
	untracked=$$(git ls-files --others --exclude-standard -- bpf) && \
	if [ -n "$$untracked" ]; then echo "$$untracked"; false; fi || { \
		echo "$@: bpf/ is not as committed: run \`make generate\` and commit the result" >&2; \
		exit 1; \
	}
	go mod verify
	go mod tidy -diff

$(GOLANGCI_LINT):
	@echo "lint: building golangci-lint $(GOLANGCI_LINT_VERSION), once"
	@GOBIN=$(CURDIR)/bin/tools CGO_ENABLED=0 go install -trimpath \
		github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	@mv bin/tools/golangci-lint $@

# The empty tree, so that --check looks at whole files, not at changes.
lint: $(GOLANGCI_LINT) ## Go linters, import law, formats of Go and C, white space
	$(call need,$(FORMAT_PACKAGES))
	$(GOLANGCI_LINT) run
	$(CLANG_FORMAT) --dry-run -Werror $(C_FILES)
	git diff --check $$(git hash-object -t tree /dev/null)

fmt: $(GOLANGCI_LINT) ## format Go and C in place
	$(call need,$(FORMAT_PACKAGES))
	$(GOLANGCI_LINT) fmt
	$(CLANG_FORMAT) -i $(C_FILES)

install: ## install what build made, as plugin too, a systemd unit and shell completion, under DESTDIR and PREFIX=/usr/local
	@test -x bin/ebpnet || { echo "bin/ebpnet is missing: run 'make build' first" >&2; exit 1; }
	install -D -m 0755 bin/ebpnet $(DESTDIR)$(PREFIX)/bin/ebpnet
	install -d $(addprefix $(DESTDIR)$(PREFIX)/,lib/cni libexec/netavark lib/systemd/system)
	ln -sf ../../bin/ebpnet $(DESTDIR)$(PREFIX)/lib/cni/ebpnet-cni
	ln -sf ../../bin/ebpnet $(DESTDIR)$(PREFIX)/libexec/netavark/ebpnet
	sed 's,@PREFIX@,$(PREFIX),' docs/ebpnet.service > \
		$(DESTDIR)$(PREFIX)/lib/systemd/system/ebpnet.service
	install -D -m 0644 completion/ebpnet.bash \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/ebpnet
	install -D -m 0644 completion/_ebpnet \
		$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_ebpnet

clean: ## remove bin/
	rm -rf bin

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | \
		while IFS=$$'\t' read -r target what; do printf '%-18s%s\n' "$$target" "$$what"; done
