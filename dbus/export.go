package dbus

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"
)

// An object is what is at one path.
type object struct {
	interfaces map[string]map[string]endpoint
	members    map[string]endpoint // of the first interface that has it
	node       introspect.Node
	xml        string
}

func (s *Server) object(path string) *object {
	o := s.objects[path]
	if o == nil {
		o = &object{interfaces: map[string]map[string]endpoint{}, members: map[string]endpoint{}}
		s.objects[path] = o
	}
	return o
}

// find returns the endpoint that m calls. Without an interface the member
// decides (D-Bus specification, "Method Calls").
func (s *Server) find(m *message) (endpoint, error) {
	o := s.objects[m.path]
	if o == nil {
		return nil, newError(errUnknownObject, "there is no object at %q", m.path)
	}
	if m.iface == "" {
		if e := o.members[m.member]; e != nil {
			return e, nil
		}
		return nil, newError(errUnknownMethod, "there is no method %q at %q", m.member, m.path)
	}
	methods, ok := o.interfaces[m.iface]
	if !ok {
		return nil, newError(errUnknownInterface, "there is no interface %q at %q", m.iface, m.path)
	}
	if e := methods[m.member]; e != nil {
		return e, nil
	}
	return nil, newError(errUnknownMethod, "there is no method %q on %q", m.member, m.iface)
}

// export adds an interface to the object at path.
func (s *Server) export(path string, described introspect.Interface, methods map[string]endpoint) error {
	switch o := s.object(path); {
	case !dbus.ObjectPath(path).IsValid():
		return fmt.Errorf("%q is no object path", path)
	case o.interfaces[described.Name] != nil:
		return fmt.Errorf("%s is there twice", described.Name)
	case len(methods) != len(described.Methods):
		return errors.New("a method is there twice")
	default:
		for name, e := range methods {
			if !e.asks().right.Known() {
				return fmt.Errorf("method %s: it is not said who may call it", name)
			}
		}
		o.interfaces[described.Name] = methods
		for name, e := range methods {
			if o.members[name] == nil {
				o.members[name] = e
			}
		}
		o.node.Interfaces = append(o.node.Interfaces, described)
		return nil
	}
}

func (s *Server) exportService(service Service) error {
	methods := map[string]endpoint{}
	for _, m := range service.Methods {
		if err := m.check(); err != nil {
			return fmt.Errorf("method %s: %w", m.Name, err)
		}
		methods[m.Name] = s.observed(service.Interface, m.Name, &protoEndpoint{m})
	}
	for _, signal := range service.Signals {
		if _, ok := s.signals[signal.Name]; ok {
			return fmt.Errorf("signal %s is there twice", signal.Name)
		}
		s.signals[signal.Name] = exportedSignal{
			path: service.Path, iface: service.Interface,
			payload: signal.Payload.ProtoReflect().Descriptor().FullName(),
			public:  signal.Public,
		}
	}
	if !slices.Contains(s.names, service.BusName) {
		s.names = append(s.names, service.BusName)
	}
	return s.export(service.Path, describeService(service), methods)
}

func (s *Server) exportOwn(own OwnInterface) error {
	methods := map[string]endpoint{}
	for _, m := range own.Methods {
		if err := m.check(); err != nil {
			return fmt.Errorf("method %s: %w", m.Name, err)
		}
		methods[m.Name] = s.observed(own.Name, m.Name, &plainEndpoint{m})
	}
	for _, signal := range own.Signals {
		if _, ok := s.signals[signal.Name]; ok {
			return fmt.Errorf("signal %s is there twice", signal.Name)
		}
		s.signals[signal.Name] = exportedSignal{path: own.Path, iface: own.Name, args: signatureOf(signal.Args)}
	}
	return s.export(own.Path, describeOwn(own), methods)
}

// exportStandard adds what every object has, and the objects above the
// services' own, which only lead there.
func (s *Server) exportStandard() error {
	for _, path := range slices.Collect(maps.Keys(s.objects)) {
		for path != "/" {
			path = parent(path)
			s.object(path)
		}
	}
	for path, o := range s.objects {
		for _, std := range standardInterfaces(o) {
			if err := s.export(path, std.described, std.methods); err != nil {
				return err
			}
		}
		for child := range s.objects {
			if child != "/" && parent(child) == path {
				o.node.Children = append(o.node.Children, introspect.Node{Name: child[strings.LastIndex(child, "/")+1:]})
			}
		}
		slices.SortFunc(o.node.Children, func(a, b introspect.Node) int { return strings.Compare(a.Name, b.Name) })
		if err := o.describe(); err != nil {
			return err
		}
	}
	return nil
}

// parent is the path above path.
func parent(path string) string {
	return path[:max(strings.LastIndex(path, "/"), 1)]
}
