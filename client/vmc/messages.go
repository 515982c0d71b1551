package vmc

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/protos/appspb"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// A subject is what the name on a command line means: a method, a signal or a
// message, of which one is set.
type subject struct {
	name    string
	method  *dbus.Method
	message proto.Message
}

// methodNames are the names of all methods with messages.
func methodNames() []string {
	var names []string
	for _, of := range services() {
		for _, m := range of.table.Methods {
			names = append(names, m.Name)
		}
	}
	return sorted(names)
}

func signalNames() []string {
	var names []string
	for _, of := range services() {
		for _, s := range of.table.Signals {
			names = append(names, s.Name)
		}
	}
	return sorted(names)
}

// contracts are the files with the messages of the contract.
var contracts = []protoreflect.FileDescriptor{pb.File_concierge_service_proto, ciceronepb.File_cicerone_service_proto, appspb.File_apps_proto}

// messageNames are the messages of the contract, without their package.
func messageNames() []string {
	var names []string
	for _, file := range contracts {
		for i := range file.Messages().Len() {
			names = append(names, string(file.Messages().Get(i).Name()))
		}
	}
	return sorted(names)
}

// findMethod looks a method up, and whose it is. No two services have methods
// of the same name.
func findMethod(name string) (*service, *dbus.Method, error) {
	var interfaces []string
	for _, of := range services() {
		if m, ok := of.table.Method(name); ok {
			return of, &m, nil
		}
		interfaces = append(interfaces, of.table.Interface)
	}
	return nil, nil, withCode(ExitUsage, fmt.Errorf("%s have no method %q%s", strings.Join(interfaces, " and "), name, suggestion(name, methodNames())))
}

// find looks a method, signal or message up.
func find(name string) (*subject, error) {
	for _, of := range services() {
		if m, ok := of.table.Method(name); ok {
			return &subject{name: name, method: &m}, nil
		}
		for _, s := range of.table.Signals {
			if s.Name == name {
				return &subject{name: name, message: s.Payload}, nil
			}
		}
	}
	candidates := []protoreflect.FullName{protoreflect.FullName(name)}
	if !strings.Contains(name, ".") {
		candidates = nil
		for _, file := range contracts {
			candidates = append(candidates, file.Package().Append(protoreflect.Name(name)))
		}
	}
	for _, full := range candidates {
		if t, err := protoregistry.GlobalTypes.FindMessageByName(full); err == nil {
			return &subject{name: name, message: t.New().Interface()}, nil
		}
	}
	all := append(append(methodNames(), signalNames()...), messageNames()...)
	return nil, withCode(ExitUsage, fmt.Errorf("there is no method, signal or message %q%s", name, suggestion(name, sorted(all))))
}

// request is the message that a method takes, nil when it takes none.
func (s *subject) request() proto.Message {
	if s.method == nil {
		return fresh(s.message)
	}
	if s.method.Request == nil {
		return nil
	}
	return fresh(s.method.Request)
}

func fresh(m proto.Message) proto.Message { return m.ProtoReflect().New().Interface() }

// response reads an answer. One method has two, which are not the same on the
// wire and do not say which they are.
func (s *subject) response(b []byte) (proto.Message, error) {
	switch {
	case s.method == nil:
		return unmarshal(b, s.message)
	case s.method.Response == nil:
		return nil, withCode(ExitUsage, fmt.Errorf("%s has no result", s.name))
	case s.method.Seed != nil:
		// The older one holds names where the newer holds messages, and names
		// have no control characters, which every such message begins with.
		if m, err := unmarshal(b, s.method.Seed.Response); err == nil && legible(m) {
			return m, nil
		}
	}
	return unmarshal(b, s.method.Response)
}

func unmarshal(b []byte, prototype proto.Message) (proto.Message, error) {
	m := fresh(prototype)
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, withCode(ExitFailed, fmt.Errorf("these %d bytes are no %s: %w", len(b), m.ProtoReflect().Descriptor().FullName(), err))
	}
	return m, nil
}

// legible says whether the lists of strings in a message are text.
func legible(m proto.Message) bool {
	ok := true
	m.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if fd.IsList() && fd.Kind() == protoreflect.StringKind {
			for i := range v.List().Len() {
				ok = ok && !strings.ContainsFunc(v.List().Get(i).String(), unicode.IsControl)
			}
		}
		return ok
	})
	return ok
}

// requestArgument reads the request that the command line gives as JSON: "-"
// is standard input, nothing is the empty request, nil where the method takes
// none.
func (a *app) requestArgument(s *subject, args []string) (proto.Message, error) {
	text := "{}"
	if len(args) > 0 {
		text = args[0]
	}
	if text == "-" {
		if a.in == nil {
			return nil, withCode(ExitUsage, errors.New("there is no standard input to read the request from"))
		}
		b, err := io.ReadAll(io.LimitReader(a.in, maxInput))
		if err != nil {
			return nil, fmt.Errorf("read the request from standard input: %w", err)
		}
		text = string(b)
	}
	req := s.request()
	if req == nil {
		if strings.Join(strings.Fields(text), "") != "{}" {
			return nil, withCode(ExitUsage, fmt.Errorf("%s takes no request: leave the JSON out", s.name))
		}
		return nil, nil
	}
	if err := parseJSON(text, req); err != nil {
		d := req.ProtoReflect().Descriptor()
		return nil, withCode(ExitUsage, fmt.Errorf("the request is no %s in JSON: %w; its fields are %s", d.FullName(), err, fieldNames(d)))
	}
	return req, nil
}

// maxInput bounds what is read from standard input; the service takes 4 MiB.
const maxInput = 32 << 20

func fieldNames(d protoreflect.MessageDescriptor) string {
	var names []string
	for i := range d.Fields().Len() {
		names = append(names, string(d.Fields().Get(i).Name()))
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
