# Auberge. `make run` shows it at work, `make test` tests everything.

GO        ?= go
BUILD     := -trimpath
LDFLAGS   := -s -w
# The last line that `make image` prints is the image directory.
MAKEFLAGS += --no-print-directory
BIN       := bin
# Programs of the host and of the guest. All are static: the daemons start
# themselves again as other users, and guests have no C library to share.
HOST      := daemon/vm_concierge daemon/vm_cicerone daemon/auberge-vm daemon/auberge-helper client/cmd/vmc client/cmd/vsh
GUEST     := $(wildcard guest/cmd/*)

# What the install and package rules need; the places they install to can be
# given too, see packaging/install.sh.
PREFIX    ?= /usr/local
DAEMONS   := $(notdir $(filter daemon/%,$(HOST)))
CLIENTS   := $(notdir $(filter client/%,$(HOST)))
PLACES    = BIN=$(BIN) PREFIX=$(PREFIX) DAEMONS="$(DAEMONS)" CLIENTS="$(CLIENTS)"

.PHONY: all build deps image man share install install-image packages examples protos run test bench soak clean $(HOST) $(GUEST)

all: build man share

# deps is the only target that installs packages.
deps:
	@packaging/deps/install.sh

build: $(HOST) $(GUEST)

$(HOST):
	CGO_ENABLED=0 $(GO) build $(BUILD) -ldflags '$(LDFLAGS)' -o $(BIN)/$(@F) ./$@

# grpcnotrace leaves out what keeps the linker from dropping unused methods:
# the agent is half as large, and it is unpacked into every guest's memory.
$(GUEST):
	CGO_ENABLED=0 $(GO) build $(BUILD) -tags grpcnotrace -ldflags '$(LDFLAGS)' -o $(BIN)/guest/$(@F) ./$@

# image builds the guest image, or finds it in the cache, and prints its
# directory as the last line.
image: $(GUEST)
	@packaging/image/build.sh --agents $(BIN)/guest

# man writes the manual pages: vmc's from its commands, the others from their
# source; their date is that of the last commit.
man: $(HOST)
	@rm -rf $(BIN)/man
	@export SOURCE_DATE_EPOCH=$$(packaging/version.sh date) && \
	$(GO) run ./client/man $(BIN)/man && $(GO) run ./packaging/man $(BIN) $(BIN)/man packaging/man/*.md
	@echo "$(BIN)/man: $$(ls $(BIN)/man | wc -l) pages"

# share makes what goes with the programs: completion for shells, descriptions
# of the D-Bus interfaces, the licenses of what is linked in.
share: $(HOST)
	@packaging/share.sh $(BIN) $(addprefix ./,$(HOST) $(GUEST))

# install puts what `make` built at its place below DESTDIR and PREFIX;
# install-image the guest image. Neither builds anything but the image.
install:
	@$(PLACES) packaging/install.sh programs

install-image: image
	@IMAGE=$$(packaging/image/build.sh --agents $(BIN)/guest | tail -n 1) && \
	$(PLACES) IMAGE=$$IMAGE packaging/install.sh image

# packages makes .deb and .rpm in $(BIN)/packages.
packages: build man share
	@IMAGE=$$(packaging/image/build.sh --agents $(BIN)/guest | tail -n 1) && \
	$(PLACES) IMAGE=$$IMAGE packaging/packages.sh

# examples makes the example clients ready to run, in $(BIN)/examples: the code
# that protoc writes for one, the libraries from npm for the other.
examples:
	@mkdir -p $(BIN)/examples/proto
	@cp -r examples/python examples/javascript examples/shell $(BIN)/examples/ && cp protos/*.proto $(BIN)/examples/proto/
	protoc -I protos --python_out=$(BIN)/examples/python concierge_service.proto
	@cd $(BIN)/examples/javascript && { cmp -s package-lock.json node_modules/.lock || \
	{ npm ci --ignore-scripts --no-audit --no-fund && cp package-lock.json node_modules/.lock; }; }

# protos generates the Go code of the wire contracts again.
protos:
	protos/generate.sh

# run shows the main job for real: a private bus, the service, and an ordinary
# user who starts a VM, uses it and stops it.
run: deps build
	@image=$$(packaging/image/build.sh --agents $(BIN)/guest | tail -n 1) && \
	$(GO) run ./test/demo --bin $(BIN) --image "$$image"

# test runs every suite; nothing is skipped.
test: deps
	@test/run.sh

# soak takes hours: random kills by the hundred, long streams, fuzzing. What it
# does how often can be set in the environment; see test/soak.sh.
soak: deps
	@test/soak.sh

# bench compares Auberge with what it is built on and prints a table. It gates
# nothing and takes half an hour; ARGS are for the program, see
# bin/bench/bench --help.
bench: deps build
	CGO_ENABLED=0 $(GO) build $(BUILD) -ldflags '$(LDFLAGS)' -o $(BIN)/bench/ ./test/bench ./test/bench/standin ./test/bench/guest
	@image=$$(packaging/image/build.sh --agents $(BIN)/guest | tail -n 1) && \
	$(BIN)/bench/bench --bin $(BIN) --image "$$image" $(ARGS)

clean:
	rm -rf $(BIN)
