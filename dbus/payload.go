package dbus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// protoEndpoint answers the calls of a Method.
type protoEndpoint struct{ Method }

func (e *protoEndpoint) asks() rule { return rule{right: e.Right} }

func (e *protoEndpoint) serve(ctx context.Context, c *call) (body, error) {
	p, err := c.identify(ctx)
	if err != nil {
		return body{}, err
	}
	req, files, err := e.request(c)
	c.raw = nil
	c.ticket.parsed()
	defer closeFiles(files)
	if err != nil {
		return body{}, err
	}
	word := ""
	if req != nil {
		word = ownerWord(req)
	}
	subject, err := c.authorize(ctx, p, e.asks(), word)
	if err != nil {
		c.failed = true
		return e.failure(err)
	}
	if err := c.ticket.weigh(e.Weight); err != nil {
		return body{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeoutOr(e.Timeout))
	defer cancel()
	resp, err := e.handle(ctx, &invocation{subject: subject, request: req, files: files})
	if err != nil {
		c.failed = true
		return e.failure(err)
	}
	return e.response(resp)
}

func timeoutOr(d time.Duration) time.Duration {
	if d == 0 {
		return DefaultTimeout
	}
	return d
}

// request reads the arguments. The files are the caller's to close.
func (e *protoEndpoint) request(c *call) (proto.Message, []*os.File, error) {
	if e.Request == nil {
		if c.signature != "" {
			return nil, nil, newError(errInvalidArgs, "the method takes no arguments")
		}
		return nil, nil, nil
	}
	p, err := readPayload(c.message, e.Descriptors)
	if err != nil {
		return nil, nil, newError(errInvalidArgs, "%v", err)
	}
	if limit := c.session.server.opts.Limits.Payload; len(p.data) > limit {
		return nil, nil, newError(errLimitsExceeded, "a request of %d bytes; it may have %d", len(p.data), limit)
	}
	req, err := parseRequest(e.Request, p.data)
	if err != nil {
		return nil, nil, newError(errInvalidArgs, "no %s: %v", e.Request.ProtoReflect().Descriptor().FullName(), err)
	}
	return req, c.takeFiles(p.fds), nil
}

// parseRequest parses data as a message like prototype. Fields that we do not
// know are dropped, so that they cost nothing from here on.
func parseRequest(prototype proto.Message, data []byte) (proto.Message, error) {
	if err := countFields(data); err != nil {
		return nil, err
	}
	req := prototype.ProtoReflect().New().Interface()
	return req, proto.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: 100}.Unmarshal(data, req)
}

func countFields(data []byte) error {
	if len(data) <= 2*maxRequestFields {
		return nil // no record is shorter than two bytes
	}
	for n := 0; len(data) > 0; n++ {
		if n == maxRequestFields {
			return fmt.Errorf("more than %d fields", maxRequestFields)
		}
		_, _, size := protowire.ConsumeField(data)
		if size < 0 {
			return protowire.ParseError(size)
		}
		data = data[size:]
	}
	return nil
}

// takeFiles turns the descriptors at the given indexes into files.
func (m *message) takeFiles(indexes []uint32) []*os.File {
	var files []*os.File
	taken := map[int]bool{}
	for _, i := range indexes {
		fd := m.fds[i]
		taken[fd] = true
		files = append(files, os.NewFile(uintptr(fd), fmt.Sprintf("descriptor %d of %s", i, m.sender)))
	}
	var rest []int
	for _, fd := range m.fds {
		if !taken[fd] {
			rest = append(rest, fd)
		}
	}
	m.fds = rest
	return files
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// response encodes what the handler returned.
func (e *protoEndpoint) response(resp proto.Message) (body, error) {
	if e.Response == nil {
		return body{}, nil
	}
	if resp == nil || !resp.ProtoReflect().IsValid() {
		return body{}, fmt.Errorf("%w: %s answered nothing", errDefect, e.Name)
	}
	data, err := proto.Marshal(resp)
	if err != nil {
		return body{}, fmt.Errorf("%w: can't encode the answer of %s: %w", errDefect, e.Name, err)
	}
	return payloadBody(data), nil
}

// errDefect marks a mistake of ours, which the log hears of and the caller not.
var errDefect = errors.New("defect")
