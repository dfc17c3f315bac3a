"""An arm with the Panda's joints, limits and lengths (Franka's published kinematics) and sticks for links.

It stands in for MuJoCo Menagerie's model, whose meshes are not part of this repository: names are those that
`vjepa_mpc.robots.panda` looks for.
"""

from __future__ import annotations

from pathlib import Path

_LINKS = (
    ("0 0 .333", "1 0 0 0", "-2.8973 2.8973", "0 0 -.333 0 0 0"),
    ("0 0 0", "1 -1 0 0", "-1.7628 1.7628", "0 0 0 0 -.316 0"),
    ("0 -.316 0", "1 1 0 0", "-2.8973 2.8973", "0 0 0 .0825 0 0"),
    (".0825 0 0", "1 1 0 0", "-3.0718 -.0698", "0 0 0 -.0825 .384 0"),
    ("-.0825 .384 0", "1 -1 0 0", "-2.8973 2.8973", "0 0 -.2 0 0 0"),
    ("0 0 0", "1 1 0 0", "-.0175 3.7525", "0 0 0 .088 0 0"),
    (".088 0 0", "1 1 0 0", "-2.8973 2.8973", "0 0 0 0 0 .107"),
)
_FINGER = """
<body name="{side}_finger" pos="0 0 .0584" quat="{quat}">
  <inertial mass=".015" pos="0 0 0" diaginertia="1e-5 1e-5 1e-5"/>
  <joint name="finger_joint{number}" type="slide" axis="0 1 0" range="0 .04"/>
  <geom class="visual" type="box" size=".01 .005 .02" pos="0 .005 .025"/>
</body>
"""


def write_stand_in(folder: Path) -> Path:
    """Write `franka_emika_panda/panda.xml` under `folder`, and return that folder."""
    fingers = _FINGER.format(side="left", number=1, quat="1 0 0 0") + _FINGER.format(
        side="right", number=2, quat="0 0 0 1"
    )
    body = f"""<body name="hand" pos="0 0 .107" quat=".9238795 0 0 -.3826834">
      <geom class="visual" type="box" size=".02 .09 .03" pos="0 0 .03" mass=".7"/>{fingers}</body>"""
    for number, (place, quat, limits, stick) in reversed(list(enumerate(_LINKS, start=1))):
        body = f"""<body name="link{number}" pos="{place}" quat="{quat}">
          <joint name="joint{number}" axis="0 0 1" range="{limits}"/>
          <geom class="visual" type="capsule" fromto="{stick}" size=".04" mass="3"/>{body}</body>"""
    text = f"""<mujoco model="panda"><compiler angle="radian" autolimits="true"/>
      <default><default class="panda"><default class="visual"><geom contype="0" conaffinity="0" group="2"/></default>
      </default></default>
      <worldbody><body name="link0" childclass="panda">{body}</body></worldbody></mujoco>"""
    (folder / "franka_emika_panda").mkdir(parents=True, exist_ok=True)
    (folder / "franka_emika_panda" / "panda.xml").write_text(text, encoding="utf-8")
    return folder
