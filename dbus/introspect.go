package dbus

import (
	"encoding/xml"
	"fmt"
	"strings"

	"github.com/godbus/dbus/v5/introspect"
	"google.golang.org/protobuf/proto"
)

// Annotations that name the messages inside ay, for those who write clients.
const (
	annotateRequest  = "io.github.auberge_vm.Request"
	annotateResponse = "io.github.auberge_vm.Response"
	annotateSeed     = "io.github.auberge_vm.Response.Seed"
	annotatePayload  = "io.github.auberge_vm.Payload"
)

func names(annotation string, msg proto.Message) introspect.Annotation {
	return introspect.Annotation{Name: annotation, Value: string(msg.ProtoReflect().Descriptor().FullName())}
}

// describeService describes the arguments as HEAD has them; ay alone and the
// seed's ay h are accepted as well.
func describeService(service Service) introspect.Interface {
	described := introspect.Interface{Name: service.Interface}
	for _, m := range service.Methods {
		d := introspect.Method{Name: m.Name}
		if m.Request != nil {
			d.Args = append(d.Args, introspect.Arg{Name: "request", Type: "ay", Direction: "in"})
			d.Annotations = append(d.Annotations, names(annotateRequest, m.Request))
		}
		if m.Descriptors == DescriptorsMayFollow {
			d.Args = append(d.Args, introspect.Arg{Name: "fds", Type: "ah", Direction: "in"})
		}
		if m.Response != nil {
			d.Args = append(d.Args, introspect.Arg{Name: "response", Type: "ay", Direction: "out"})
			d.Annotations = append(d.Annotations, names(annotateResponse, m.Response))
		}
		if m.Seed != nil {
			d.Annotations = append(d.Annotations, names(annotateSeed, m.Seed.Response))
		}
		described.Methods = append(described.Methods, d)
	}
	for _, signal := range service.Signals {
		described.Signals = append(described.Signals, introspect.Signal{
			Name:        signal.Name,
			Args:        []introspect.Arg{{Name: "payload", Type: "ay"}},
			Annotations: []introspect.Annotation{names(annotatePayload, signal.Payload)},
		})
	}
	return described
}

func describeOwn(own OwnInterface) introspect.Interface {
	described := introspect.Interface{Name: own.Name}
	for _, m := range own.Methods {
		d := introspect.Method{Name: m.Name}
		for _, arg := range m.In {
			d.Args = append(d.Args, introspect.Arg{Name: arg.Name, Type: arg.Type, Direction: "in"})
		}
		for _, arg := range m.Out {
			d.Args = append(d.Args, introspect.Arg{Name: arg.Name, Type: arg.Type, Direction: "out"})
		}
		described.Methods = append(described.Methods, d)
	}
	for _, signal := range own.Signals {
		d := introspect.Signal{Name: signal.Name}
		for _, arg := range signal.Args {
			d.Args = append(d.Args, introspect.Arg{Name: arg.Name, Type: arg.Type})
		}
		described.Signals = append(described.Signals, d)
	}
	return described
}

// doctype is godbus's declaration without its white space.
var doctype = strings.Join(strings.Fields(introspect.IntrospectDeclarationString), " ") + "\n"

// describe writes the object's introspection, once: it never changes.
func (o *object) describe() error {
	text, err := xml.MarshalIndent(o.node, "", "  ")
	if err != nil {
		return fmt.Errorf("can't describe an object: %w", err)
	}
	short := strings.NewReplacer("></arg>", "/>", "></annotation>", "/>", "></method>", "/>", "></node>", "/>")
	o.xml = doctype + short.Replace(string(text)) + "\n"
	return nil
}
