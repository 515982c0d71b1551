package cicerone

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/guestlink/wire"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/appspb"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
)

// What a container may ask of the desktop.
const (
	maxURL    = 8 << 10
	maxParams = 256
)

// shown is the answer to what was handed to the desktop. That nobody is there
// is nothing that a container could do something about.
func (l containerListener) shown(what string, err error) (*vmtoolspb.EmptyMessage, error) {
	switch {
	case err == nil, errors.Is(err, ErrNoDesktop):
		return heard, nil
	}
	l.v.log.Warn("the user's desktop does not take what a container has", "what", what, "err", err)
	return nil, status.Errorf(codes.Unavailable, "the desktop does not take the %s", what)
}

// appType is how a VM's type is told to the desktop.
func (v *vm) appType() appspb.VmType {
	if v.info.Type == appspb.VmType_BAGUETTE {
		return appspb.VmType_TERMINA
	}
	return v.info.Type
}

func (l containerListener) UpdateApplicationList(ctx context.Context, r *cpb.UpdateApplicationListRequest) (*vmtoolspb.EmptyMessage, error) {
	c, err := l.runs(r.GetToken())
	if err != nil {
		return nil, err
	}
	if err := l.mayTell(c, appList, len(r.GetApplication()), r); err != nil {
		return nil, err
	}
	v := l.v
	list := &appspb.ApplicationList{VmName: v.info.Name, ContainerName: c.name, OwnerId: v.info.Owner.Word, VmType: v.appType()}
	for _, a := range r.GetApplication() {
		app, err := appOf(a)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, "an application cannot be read")
		}
		list.Apps = append(list.Apps, app)
	}
	return l.tellList(ctx, c, appList, list)
}

// appOf is what a container tells of an application in the desktop's terms:
// both messages have the same fields.
func appOf(a *cpb.Application) (*appspb.App, error) {
	data, err := proto.Marshal(a)
	if err != nil {
		return nil, err
	}
	app := &appspb.App{}
	return app, proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, app)
}

func (l containerListener) UpdateMimeTypes(ctx context.Context, r *cpb.UpdateMimeTypesRequest) (*vmtoolspb.EmptyMessage, error) {
	c, err := l.runs(r.GetToken())
	if err != nil {
		return nil, err
	}
	if err := l.mayTell(c, mimeList, len(r.GetMimeTypeMappings()), r); err != nil {
		return nil, err
	}
	return l.tellList(ctx, c, mimeList, &appspb.MimeTypes{MimeTypeMappings: r.GetMimeTypeMappings(),
		VmName: l.v.info.Name, ContainerName: c.name, OwnerId: l.v.info.Owner.Word})
}

// mayOpen bounds what a VM's containers open on somebody's screen.
func (l containerListener) mayOpen() error {
	l.v.s.mu.Lock()
	defer l.v.s.mu.Unlock()
	if !l.v.openings.allow(time.Now()) {
		return status.Error(codes.ResourceExhausted, "the VM's containers have opened more than 10 URLs, terminals and file dialogs in 15 seconds: try again later")
	}
	return nil
}

func (l containerListener) OpenUrl(ctx context.Context, r *cpb.OpenUrlRequest) (*vmtoolspb.EmptyMessage, error) {
	c, err := l.runs(r.GetToken())
	if err != nil {
		return nil, err
	}
	if err := l.mayOpen(); err != nil {
		return nil, err
	}
	v := l.v
	v.s.mu.Lock()
	address := c.address
	v.s.mu.Unlock()
	u, err := hostURL(r.GetUrl(), address)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, desktopTimeout)
	defer cancel()
	return l.shown("URL", v.s.cfg.Desktop.OpenUrl(ctx, v.info.Owner.UID, u))
}

func (l containerListener) OpenTerminal(ctx context.Context, r *cpb.OpenTerminalRequest) (*vmtoolspb.EmptyMessage, error) {
	c, err := l.runs(r.GetToken())
	if err != nil {
		return nil, err
	}
	if err := l.mayOpen(); err != nil {
		return nil, err
	}
	if len(r.GetParams()) > maxParams || checkArguments(r.GetParams()...) != nil {
		return nil, status.Errorf(codes.InvalidArgument, "more than %d parameters, or one longer than %d bytes", maxParams, maxArgument)
	}
	v := l.v
	ctx, cancel := context.WithTimeout(ctx, desktopTimeout)
	defer cancel()
	return l.shown("terminal", v.s.cfg.Desktop.LaunchTerminal(ctx, v.info.Owner.UID, &appspb.TerminalParams{
		Params: r.GetParams(), VmName: v.info.Name, ContainerName: c.name, OwnerId: v.info.Owner.Word}))
}

// A dialog is one that a container has the desktop show.
type dialog struct {
	v         *vm
	container string
	// answer gets what was selected; it is closed without when the container
	// goes.
	answer chan []string
}

// SelectFile shows a dialog and answers with what is selected there.
func (l containerListener) SelectFile(ctx context.Context, r *cpb.SelectFileRequest) (*cpb.SelectFileResponse, error) {
	c, err := l.runs(r.GetToken())
	if err != nil {
		return nil, err
	}
	if err := l.mayOpen(); err != nil {
		return nil, err
	}
	if checkArguments(r.GetType(), r.GetTitle(), r.GetDefaultPath(), r.GetAllowedExtensions()) != nil {
		return nil, status.Errorf(codes.InvalidArgument, "a text is longer than %d bytes", maxArgument)
	}
	v := l.v
	token := uuid.NewString()
	d := &dialog{v: v, container: c.name, answer: make(chan []string, 1)}
	v.s.mu.Lock()
	n := 0
	for _, o := range v.s.dialogs {
		if o.v == v {
			n++
		}
	}
	if n >= maxDialogs {
		v.s.mu.Unlock()
		return nil, status.Errorf(codes.ResourceExhausted, "%d dialogs are open, the most that may", n)
	}
	v.s.dialogs[token] = d
	v.s.mu.Unlock()
	defer func() {
		v.s.mu.Lock()
		defer v.s.mu.Unlock()
		delete(v.s.dialogs, token)
	}()
	show, cancel := context.WithTimeout(ctx, desktopTimeout)
	err = v.s.cfg.Desktop.SelectFile(show, v.info.Owner.UID, &appspb.SelectFileRequest{VmName: v.info.Name, ContainerName: c.name,
		OwnerId: v.info.Owner.Word, SelectFileToken: token, Type: r.GetType(), Title: wire.Text(r.GetTitle(), 1024),
		DefaultPath: r.GetDefaultPath(), AllowedExtensions: r.GetAllowedExtensions()})
	cancel()
	if err != nil {
		v.log.Info("a container's file dialog is not shown", "container", c.name, "err", err)
		return nil, status.Error(codes.Unavailable, "no program of the user's desktop shows file dialogs")
	}
	select {
	case files, ok := <-d.answer:
		if !ok {
			return nil, status.Error(codes.Canceled, "the container has stopped")
		}
		return &cpb.SelectFileResponse{Files: files}, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// closeDialogs ends those of a container; mu is held.
func (v *vm) closeDialogs(container string) {
	for token, d := range v.s.dialogs {
		if d.v == v && d.container == container {
			delete(v.s.dialogs, token)
			close(d.answer)
		}
	}
}

// FileSelected is the answer to SelectFile.
func (s *Service) FileSelected(_ context.Context, sub policy.Subject, req *pb.FileSelectedSignal) (*vmtoolspb.EmptyMessage, error) {
	if err := checkContainer(req.GetContainerName()); err != nil {
		return nil, err
	}
	if len(req.GetFiles()) > maxFiles {
		return nil, fmt.Errorf("%w: %d files are more than %d", ErrInvalid, len(req.GetFiles()), maxFiles)
	}
	if err := checkArguments(req.GetFiles()...); err != nil {
		return nil, err
	}
	v, err := s.find(sub, req.GetVmName())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.dialogs[req.GetSelectFileToken()]
	if d == nil || d.v != v || d.container != req.GetContainerName() {
		return nil, fmt.Errorf("%w: container %q of VM %q waits for no such selection (any more)", ErrNotFound, req.GetContainerName(), v.info.Name)
	}
	delete(s.dialogs, req.GetSelectFileToken())
	d.answer <- req.GetFiles()
	return &vmtoolspb.EmptyMessage{}, nil
}
