package setuptest

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/policy"
)

// tooLong is when a handler counts as one that hangs: far beyond its context.
const tooLong = time.Minute

// Handlers feeds the handlers of a table of methods with foreign requests.
type Handlers struct {
	Methods []dbus.Method
	// Handler has a Go method for each of them.
	Handler any
	Subject policy.Subject
	// Patience is the time that a caller has.
	Patience time.Duration
	// Tame may change a request before it is handled.
	Tame func(protoreflect.Message)
}

// Seeds calls add with requests for each method: an empty one, one that sets
// every field, and half of that.
func (h *Handlers) Seeds(t testing.TB, add func(method string, request []byte)) {
	t.Helper()
	for _, m := range h.Methods {
		add(m.Name, []byte{})
		if m.Request == nil {
			continue
		}
		req := m.Request.ProtoReflect().New()
		Full(req, 2)
		b, err := proto.Marshal(req.Interface())
		if err != nil {
			t.Fatal(err)
		}
		add(m.Name, b)
		add(m.Name, b[:len(b)/2])
	}
}

// Call hands a request to the handler of a method, of some method when none has
// that name, and checks that it comes to an end with an error or with what can
// be sent. It returns the method's name, which is empty when nothing was
// called: bytes that are no request get no further than package dbus.
func (h *Handlers) Call(t *testing.T, method string, request []byte) string {
	t.Helper()
	m := h.method(method)
	ctx, cancel := context.WithTimeout(t.Context(), h.Patience)
	defer cancel()
	args := []reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(h.Subject)}
	if m.Request != nil {
		// The reader of requests has the same options; see dbus.
		req := m.Request.ProtoReflect().New()
		if (proto.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: 100}).Unmarshal(request, req.Interface()) != nil {
			return ""
		}
		if h.Tame != nil {
			h.Tame(req)
		}
		args = append(args, reflect.ValueOf(req.Interface()))
	}
	handler := reflect.ValueOf(h.Handler).MethodByName(m.Name)
	if handler.Type().NumIn() > len(args) {
		args = append(args, reflect.Zero(handler.Type().In(len(args)))) // no descriptors
	}
	results := Ends(t, m.Name, func() []reflect.Value { return handler.Call(args) })
	err, _ := results[len(results)-1].Interface().(error)
	if err == nil && m.Response != nil {
		resp := results[0].Interface().(proto.Message)
		if !resp.ProtoReflect().IsValid() {
			t.Fatalf("%s answers nothing", m.Name)
		}
		if _, err := proto.Marshal(resp); err != nil {
			t.Fatalf("%s answers what cannot be sent: %v", m.Name, err)
		}
	}
	return m.Name
}

func (h *Handlers) method(name string) dbus.Method {
	for _, m := range h.Methods {
		if m.Name == name {
			return m
		}
	}
	hash := fnv.New32a()
	io.WriteString(hash, name)
	return h.Methods[int(hash.Sum32()%uint32(len(h.Methods)))]
}

// Ends returns what f returns, and fails the test when it does not.
func Ends[T any](t *testing.T, what string, f func() T) T {
	t.Helper()
	late := time.AfterFunc(tooLong, func() { panic(what + " hangs") }) // with the stacks of all goroutines
	defer late.Stop()
	return f()
}

// Full sets every field of a message to something, down to a depth.
func Full(m protoreflect.Message, depth int) {
	for i := range m.Descriptor().Fields().Len() {
		fd := m.Descriptor().Fields().Get(i)
		switch {
		case fd.IsMap(), fd.Message() != nil && depth == 0:
		case fd.IsList() && fd.Message() != nil:
			Full(m.Mutable(fd).List().AppendMutable().Message(), depth-1)
		case fd.IsList():
			m.Mutable(fd).List().Append(sample(fd))
		case fd.Message() != nil:
			Full(m.Mutable(fd).Message(), depth-1)
		default:
			m.Set(fd, sample(fd))
		}
	}
}

func sample(fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("x")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("x"))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(1)
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(1)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(1)
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(1)
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(1)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(1)
	}
	panic(fmt.Sprintf("no sample of %v", fd.Kind()))
}
