package dbus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/auberge-vm/auberge/policy"
)

// A Service is the face of one daemon: the interface that it serves at Path
// under BusName, whose methods take and return serialized protobufs. Export,
// introspection, rights and clients read this table and nothing else; a method
// that is not in it does not exist.
type Service struct {
	// Program is the daemon whose service it is, as people know it.
	Program                  string
	BusName, Path, Interface string
	Methods                  []Method
	Signals                  []Signal
}

// Method returns the method called name.
func (s Service) Method(name string) (Method, bool) {
	for _, m := range s.Methods {
		if m.Name == name {
			return m, true
		}
	}
	return Method{}, false
}

// A Signal carries one serialized protobuf.
type Signal struct {
	Name    string
	Payload proto.Message // a prototype
	// Public signals are about nobody's VMs and broadcast.
	Public bool
}

// A Method takes at most one serialized protobuf and returns at most one.
type Method struct {
	Name string
	// Request and Response are prototypes; nil means no argument and no
	// result.
	Request, Response proto.Message
	// Seed is set for a method with an older response, which is not the same
	// on the wire.
	Seed        *SeedResponse
	Descriptors DescriptorUse
	Right       policy.Right
	// Timeout is the deadline of a call; zero means DefaultTimeout. A caller
	// who leaves the bus ends no call.
	Timeout time.Duration
	// Weight is for how many calls one counts while it is in progress, until
	// its answer is sent; zero means one.
	Weight int

	handle func(context.Context, *invocation) (proto.Message, error)
}

// DefaultTimeout is the deadline of a call whose table entry has none.
const DefaultTimeout = 2 * time.Minute

// A SeedResponse is what a method of 2018 answered. A request gets it unless
// it uses one of the fields that came later.
type SeedResponse struct {
	Response  proto.Message // a prototype
	NewFields []protoreflect.Name
}

// ResponseFor returns the prototype of the answer to req.
func (m Method) ResponseFor(req proto.Message) proto.Message {
	if m.Seed == nil || req == nil {
		return m.Response
	}
	r := req.ProtoReflect()
	for _, name := range m.Seed.NewFields {
		if fd := r.Descriptor().Fields().ByName(name); fd != nil && r.Has(fd) {
			return m.Response
		}
	}
	return m.Seed.Response
}

// DescriptorUse says whether descriptors may follow a request.
type DescriptorUse int

const (
	// NoDescriptors: the arguments are ay.
	NoDescriptors DescriptorUse = iota
	// DescriptorsMayFollow: the arguments are ay, or ay ah as at HEAD, or ay h
	// as in the seed.
	DescriptorsMayFollow
)

func (u DescriptorUse) shapes() string {
	if u == DescriptorsMayFollow {
		return "ay, ayah or ayh"
	}
	return "ay"
}

// An invocation is what a handler is called with.
type invocation struct {
	subject policy.Subject
	request proto.Message
	// files are the descriptors in the order of the arguments. They are closed
	// when the handler returns.
	files []*os.File
}

// method makes the entry of a method of the handler interface H. h may be nil:
// the entry then only describes.
func method[H any, Req, Resp proto.Message](name string, right policy.Right, h H,
	f func(H, context.Context, policy.Subject, Req) (Resp, error)) Method {
	m := methodWithFiles(name, right, h, func(h H, ctx context.Context, s policy.Subject, req Req, _ []*os.File) (Resp, error) {
		return f(h, ctx, s, req)
	})
	m.Descriptors = NoDescriptors
	return m
}

// methodWithFiles is method for one that descriptors may follow.
func methodWithFiles[H any, Req, Resp proto.Message](name string, right policy.Right, h H,
	f func(H, context.Context, policy.Subject, Req, []*os.File) (Resp, error)) Method {
	m := Method{
		Name: name, Right: right, Descriptors: DescriptorsMayFollow,
		Request: prototype[Req](), Response: prototype[Resp](),
	}
	if any(h) != nil {
		m.handle = func(ctx context.Context, c *invocation) (proto.Message, error) {
			return f(h, ctx, c.subject, c.request.(Req), c.files)
		}
	}
	return m
}

// methodWithoutRequest is method for one that takes no argument.
func methodWithoutRequest[H any, Resp proto.Message](name string, right policy.Right, h H,
	f func(H, context.Context, policy.Subject) (Resp, error)) Method {
	m := Method{Name: name, Right: right, Response: prototype[Resp]()}
	if any(h) != nil {
		m.handle = func(ctx context.Context, c *invocation) (proto.Message, error) { return f(h, ctx, c.subject) }
	}
	return m
}

// methodWithoutAnswer is method for one that has neither argument nor result.
func methodWithoutAnswer[H any](name string, right policy.Right, h H, f func(H, context.Context, policy.Subject) error) Method {
	m := Method{Name: name, Right: right}
	if any(h) != nil {
		m.handle = func(ctx context.Context, c *invocation) (proto.Message, error) { return nil, f(h, ctx, c.subject) }
	}
	return m
}

// prototype returns an empty message of type T, nil for the interface itself.
func prototype[T proto.Message]() proto.Message {
	var zero T
	if any(zero) == nil {
		return nil
	}
	return zero.ProtoReflect().Type().New().Interface()
}

// check refuses an entry that can't be served. A mistake in a table must not
// come to light as a hole in the rights.
func (m *Method) check() error {
	switch {
	case m.handle == nil:
		return errors.New("it has no handler")
	case !m.Right.Known():
		return fmt.Errorf("nobody has the right %q", m.Right)
	case m.Right == policy.RightOwn && (m.Request == nil || ownerField(m.Request) == nil):
		return errors.New("its request names no owner")
	}
	return nil
}

// ownerField returns the field with the owner word (requests
// about VMs have owner_id, those about disks cryptohome_id).
func ownerField(msg proto.Message) protoreflect.FieldDescriptor {
	fields := msg.ProtoReflect().Descriptor().Fields()
	for _, name := range []protoreflect.Name{"owner_id", "cryptohome_id"} {
		if fd := fields.ByName(name); fd != nil && fd.Kind() == protoreflect.StringKind && !fd.IsList() {
			return fd
		}
	}
	return nil
}

// ownerWord reads the owner word of a request, empty when it has none.
func ownerWord(msg proto.Message) string {
	if fd := ownerField(msg); fd != nil {
		return msg.ProtoReflect().Get(fd).String()
	}
	return ""
}
