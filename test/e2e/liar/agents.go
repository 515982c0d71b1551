package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"google.golang.org/grpc"

	cpb "github.com/auberge-vm/auberge/protos/containerpb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/auberge-vm/auberge/vsock"
)

// serve serves a port of the guest until the process ends.
func serve(port uint32, register func(*grpc.Server)) error {
	l, err := vsock.ListenGuest(port, false)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	register(s)
	return s.Serve(l)
}

// agents is a garcon that says its token and answers.
func agents(token string) error {
	failed := make(chan error, 1)
	go func() { failed <- serve(garconPort, func(s *grpc.Server) { cpb.RegisterGarconServer(s, garcon{}) }) }()
	if token != "" {
		if err := report(token); err != nil {
			return err
		}
	}
	if err := note("ready", "ready"); err != nil {
		return err
	}
	return <-failed
}

func report(token string) error {
	c, err := line(vsock.PortContainerListener)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := soon()
	defer cancel()
	_, err = cpb.NewContainerListenerClient(c).ContainerReady(ctx, &cpb.ContainerStartupInfo{Token: token, GarconPort: garconPort}, grpc.WaitForReady(true))
	return err
}

// tremplin manages containers of which there is none.
func tremplin() error {
	failed := make(chan error, 2)
	go func() {
		failed <- serve(vsock.PortTremplin, func(s *grpc.Server) { tpb.RegisterTremplinServer(s, manager{}) })
	}()
	go func() { failed <- agents("") }()
	c, err := line(vsock.PortTremplinListener)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := soon()
	defer cancel()
	if _, err := tpb.NewTremplinListenerClient(c).TremplinReady(ctx, &tpb.TremplinStartupInfo{}, grpc.WaitForReady(true)); err != nil {
		return err
	}
	return <-failed
}

// A manager answers as tremplin would, or as the lie is.
type manager struct {
	tpb.UnimplementedTremplinServer
}

func (manager) StartLxd(context.Context, *tpb.StartLxdRequest) (*tpb.StartLxdResponse, error) {
	return &tpb.StartLxdResponse{Status: tpb.StartLxdResponse_ALREADY_RUNNING, FailureReason: lie()}, nil
}

func (manager) CreateContainer(context.Context, *tpb.CreateContainerRequest) (*tpb.CreateContainerResponse, error) {
	if lie() == "states" {
		return &tpb.CreateContainerResponse{Status: 99, FailureReason: odd}, nil
	}
	return &tpb.CreateContainerResponse{Status: tpb.CreateContainerResponse_EXISTS}, nil
}

// StartContainer has the agent report: it is in this process, as far as there
// is one.
func (manager) StartContainer(_ context.Context, r *tpb.StartContainerRequest) (*tpb.StartContainerResponse, error) {
	if lie() == "states" {
		return &tpb.StartContainerResponse{Status: 99, FailureReason: odd, OsRelease: &tpb.OsRelease{PrettyName: strings.Repeat("a", 1<<20)}}, nil
	}
	if err := note("token", r.GetToken()); err != nil {
		return nil, err
	}
	go func() {
		if err := report(r.GetToken()); err != nil {
			fmt.Fprintln(os.Stderr, "liar: the container is not ready:", err)
		}
	}()
	return &tpb.StartContainerResponse{Status: tpb.StartContainerResponse_STARTED}, nil
}

func (manager) GetContainerInfo(context.Context, *tpb.GetContainerInfoRequest) (*tpb.GetContainerInfoResponse, error) {
	return &tpb.GetContainerInfoResponse{Status: tpb.GetContainerInfoResponse_RUNNING, Ipv4Address: 0x05c07364}, nil
}

func (manager) GetContainerUsername(context.Context, *tpb.GetContainerUsernameRequest) (*tpb.GetContainerUsernameResponse, error) {
	if lie() == "states" {
		return &tpb.GetContainerUsernameResponse{Status: 99, Username: strings.Repeat("a", 1<<20), Homedir: odd}, nil
	}
	return &tpb.GetContainerUsernameResponse{Status: tpb.GetContainerUsernameResponse_SUCCESS, Username: "ada"}, nil
}

func (manager) StopContainer(context.Context, *tpb.StopContainerRequest) (*tpb.StopContainerResponse, error) {
	return &tpb.StopContainerResponse{Status: 99, FailureReason: odd}, nil
}

func (manager) DeleteContainer(context.Context, *tpb.DeleteContainerRequest) (*tpb.DeleteContainerResponse, error) {
	return &tpb.DeleteContainerResponse{Status: 99, FailureReason: odd}, nil
}

func (manager) SetTimezone(context.Context, *tpb.SetTimezoneRequest) (*tpb.SetTimezoneResponse, error) {
	return &tpb.SetTimezoneResponse{Successes: 1 << 30, FailureReasons: []string{odd}}, nil
}

// GetDebugInfo has the list of the containers.
func (manager) GetDebugInfo(context.Context, *tpb.GetDebugInfoRequest) (*tpb.GetDebugInfoResponse, error) {
	var b strings.Builder
	switch lie() {
	case "lists":
		for i := range 15000 { // as much as an answer may have
			fmt.Fprintf(&b, "container c%d: running\n", i)
		}
	case "names":
		for _, name := range []string{"../../x", "/etc/passwd", "A", "a b", "a\x00b", "-a", "a/b", strings.Repeat("a", 64), "\x1b[31m", "good"} {
			fmt.Fprintf(&b, "container %s: running\n", name)
		}
	}
	return &tpb.GetDebugInfoResponse{DebugInformation: b.String()}, nil
}

// odd is what a terminal or a log must not get as it is.
var odd = "\x1b]0;hello\x07\n\r" + strings.Repeat("odd ", 1<<16)

// A garcon is the agent in a container.
type garcon struct{ cpb.UnimplementedGarconServer }

func (garcon) GetGarconSessionInfo(context.Context, *cpb.GetGarconSessionInfoRequest) (*cpb.GetGarconSessionInfoResponse, error) {
	return &cpb.GetGarconSessionInfoResponse{Status: cpb.GetGarconSessionInfoResponse_SUCCEEDED, ContainerUsername: "ada", ContainerHomedir: "/home/ada"}, nil
}

func (garcon) GetIcon(_ context.Context, r *cpb.IconRequest) (*cpb.IconResponse, error) {
	resp := &cpb.IconResponse{}
	add := func(id string, icon []byte) {
		resp.DesktopIcons = append(resp.DesktopIcons, &cpb.DesktopIcon{DesktopFileId: id, Icon: icon})
	}
	switch id := r.GetDesktopFileIds()[0]; lie() {
	case "large icons":
		add(id, make([]byte, 5<<20))
	case "many icons":
		for range 1 << 16 {
			add("", nil)
		}
	case "other icons":
		for range 1000 {
			add("another", []byte("x"))
			add(id, []byte("x"))
		}
	default:
		add(id, []byte("icon of "+id))
	}
	return resp, nil
}
